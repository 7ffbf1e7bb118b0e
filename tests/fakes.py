"""Stand-ins for the outside: one for each port."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from application.fleet import Fleet, Server
from domain.fleet import ServedModel
from domain.prediction import PredictionRequest, PredictionResult

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.errors import DispatchError
    from domain.events import Event
    from domain.prediction import Json


@dataclass
class FakeServer:
    """A model server that signs every answer with its name; it takes `seconds`, and fails while told to.

    As a Predictor and a ServerProbe it is `predict` and `probe`.
    """

    name: str = "a"
    seconds: float = 0.0
    error: DispatchError | None = None
    probe_error: DispatchError | None = None
    models: tuple[ServedModel, ...] = (ServedModel("m", "1.0"),)
    asked: list[PredictionRequest] = field(default_factory=list)
    probed: int = 0
    cancelled: int = 0

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        self.asked.append(request)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        signed = tuple(f"{self.name}:{request.model}:{each}" for each in request.instances)
        return PredictionResult(request.model, signed)

    async def probe(self) -> tuple[ServedModel, ...]:
        self.probed += 1
        await asyncio.sleep(0)
        if self.probe_error is not None:
            raise self.probe_error
        return self.models


def fleet_of(
    *fakes: FakeServer, canaries: Mapping[str, Json] | None = None, heard: list[Event] | None = None
) -> Fleet:
    """A fleet of `fakes` at 127.0.0.1, ports 8080 and up, that tells `heard` its events."""
    servers = [
        Server(fake.name, "127.0.0.1", 8080 + i, fake.predict, fake.probe) for i, fake in enumerate(fakes)
    ]
    observe = (heard if heard is not None else []).append
    return Fleet(servers, observe=observe, canaries=canaries or {}, canary_timeout=2.0)
