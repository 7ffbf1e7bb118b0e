"""Stand-ins for the outside: one for each port."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from application.fleet import Fleet
from application.server import Server
from domain.fleet import ServedModel
from domain.ports import Cached
from domain.prediction import PredictionRequest, PredictionResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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


@dataclass
class FakeCache:
    """A PredictionCache that forgets on time; it stores nothing while told so (`full`)."""

    full: bool = False
    kept: dict[bytes, tuple[Json, float]] = field(default_factory=dict)
    puts: int = 0

    async def get(self, fingerprints: Sequence[bytes]) -> list[Cached | None]:
        await asyncio.sleep(0)
        now = asyncio.get_running_loop().time()
        found = [self.kept.get(each) for each in fingerprints]
        return [Cached(hit[0], hit[1] - now) if hit and hit[1] > now else None for hit in found]

    async def put(self, predictions: Mapping[bytes, Json], ttl: float) -> bool:
        self.puts += 1
        await asyncio.sleep(0)
        if self.full:
            return False
        ends = asyncio.get_running_loop().time() + ttl
        self.kept.update({key: (prediction, ends) for key, prediction in predictions.items()})
        return True


@dataclass(eq=False)
class FakeLeases:
    """Leases as one process sees them; `held`, by fingerprint who and until when, is shared by all.

    A lease ends after `ttl` seconds, and who waits looks again after `turn` seconds.
    """

    held: dict[bytes, tuple[FakeLeases, float]] = field(default_factory=dict)
    ttl: float = 10.0
    turn: float = 0.1
    taken: int = 0

    async def take(self, fingerprints: Sequence[bytes]) -> frozenset[bytes]:
        await asyncio.sleep(0)
        free = frozenset(each for each in fingerprints if self._free(each))
        self.held.update(dict.fromkeys(free, (self, asyncio.get_running_loop().time() + self.ttl)))
        self.taken += len(free)
        return free

    async def give_back(self, fingerprints: Sequence[bytes]) -> None:
        await asyncio.sleep(0)
        for each in fingerprints:
            if each in self.held and self.held[each][0] is self:
                del self.held[each]

    async def wait(self, fingerprints: Sequence[bytes]) -> None:
        if not any(self._free(each) for each in fingerprints):
            await asyncio.sleep(self.turn)

    def _free(self, fingerprint: bytes) -> bool:
        return fingerprint not in self.held or self.held[fingerprint][1] <= asyncio.get_running_loop().time()
