"""Callers whose requests meet: what tests of batching share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from application.policies.batching import Batching
from domain.prediction import ModelRef, PredictionRequest, PredictionResult, Refusal
from tests.fakes import FakeServer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from domain.events import Event
    from domain.ports import Predictor
    from domain.prediction import Json

M = ModelRef("m", "1.0")


@dataclass
class SuspiciousServer(FakeServer):
    """A FakeServer that fails, with `error`, only where a `guilty` instance is among those it is asked."""

    seconds: float = 1.0
    guilty: Sequence[Json] = ()

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        error, self.error = self.error, None
        try:
            result = await super().predict(request)
        finally:
            self.error = error
        if error is not None and not set(self.guilty).isdisjoint(request.instances):
            raise error
        return result


@dataclass
class Refusing:
    """A model that refuses every instance that is not lower case."""

    asked: list[PredictionRequest] = field(default_factory=list)

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        self.asked.append(request)
        await asyncio.sleep(1.0)
        predictions = [t if t.islower() else Refusal(422, t) for t in map(str, request.instances)]
        return PredictionResult(M, tuple(predictions), 0.5)


def batching(
    inner: Predictor,
    *,
    slots: Callable[[], int] = lambda: 1,
    max_size: int = 32,
    max_cost: int | None = None,
    heard: list[Event] | None = None,
) -> Batching:
    cost = None if max_cost is None else length
    observe = (heard if heard is not None else []).append
    return Batching(inner, slots=slots, max_size=max_size, max_cost=max_cost, cost=cost, observe=observe)


def length(instance: Json) -> int:
    return len(cast("str", instance))


def ask(*instances: str, deadline: float | None = None) -> PredictionRequest:
    return PredictionRequest(M, instances, deadline=deadline)


def signed(*instances: str) -> tuple[str, ...]:
    return tuple(f"a:m/1.0:{each}" for each in instances)


def sent(server: FakeServer | Refusing) -> list[tuple[Json, ...]]:
    return [request.instances for request in server.asked]


async def together(
    predict: Predictor, *requests: PredictionRequest
) -> list[PredictionResult | BaseException]:
    """What came of `requests`, which meet while a first one keeps the slot busy."""
    first = asyncio.create_task(predict(ask("first")))
    await asyncio.sleep(0)
    results = await asyncio.gather(*(predict(request) for request in requests), return_exceptions=True)
    await first
    return results


async def start(predict: Predictor, *requests: PredictionRequest) -> list[asyncio.Task[PredictionResult]]:
    """A task for each of `requests`, in line or in flight."""
    tasks = [asyncio.create_task(predict(request)) for request in requests]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def kinds(results: Sequence[object]) -> list[str]:
    """The names of the errors among `results`, "answered" for each of the others."""
    return [type(r).__name__ if isinstance(r, BaseException) else "answered" for r in results]
