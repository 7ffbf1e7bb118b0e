"""Admission and batching together, in front of a model that pads its batches, when too much is asked."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from application.policies.admission import Admission
from application.policies.batching import Batching
from application.policies.deadline import Deadline
from domain.concurrency_limit import Gradient2
from domain.errors import DeadlineExceeded, Overloaded
from domain.prediction import ModelRef, PredictionRequest, PredictionResult
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from domain.ports import Predictor

M = ModelRef("m", "1.0")
SECONDS = 20.0


@dataclass
class PaddingModel:
    """30 ms a batch, and 85 µs for each byte of it when padded; about `deviation` of that more or less.

    These are the sentiment model's on our machine. From `slower` seconds on it needs half as much again.
    """

    deviation: float
    slower: float = float("inf")
    chance: random.Random = field(default_factory=lambda: random.Random(3))

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        padded = max(len(str(text)) for text in request.instances) * len(request.instances)
        seconds = (0.030 + 85e-6 * padded) * self.chance.lognormvariate(0.0, self.deviation)
        await asyncio.sleep(seconds * (1.5 if now() > self.slower else 1.0))
        return PredictionResult(request.model, request.instances)


def policies(model: Predictor) -> Predictor:
    batching = Batching(model, slots=lambda: 1, max_size=32, max_cost=2500, cost=_length, observe=_nobody)
    limit = Gradient2(maximum=2000, floor=lambda: 128)
    admission = Admission(
        batching, limit=limit, max_waiting=5000, bulk_share=0.1, in_order=False, observe=_nobody
    )
    return Deadline(admission, default=60.0, cap=60.0)


def _length(instance: object) -> int:
    return len(str(instance))


def _nobody(_event: object) -> None:
    """Hears nothing."""


def texts(seed: int) -> Callable[[], str]:
    """Of 20 to 200 characters, about 100."""
    chance = random.Random(seed)
    return lambda: "x" * max(20, min(200, int(chance.gauss(100, 35))))


async def capacity(model: Predictor) -> float:
    """Answers a second for 64 callers who ask again as soon as they are answered."""
    predict, text, answered = policies(model), texts(1), 0

    async def caller() -> None:
        nonlocal answered
        while now() < SECONDS:
            await predict(PredictionRequest(M, (text(),)))
            answered += 1

    async with asyncio.TaskGroup() as callers:
        for _ in range(64):
            callers.create_task(caller())
    return answered / SECONDS


async def goodput(model: Predictor, rate: float, deadlines: Sequence[float]) -> float:
    """Answers in time, a second, when `rate` a second are asked for at random times."""
    predict, text, chance, answered, begun = policies(model), texts(2), random.Random(1), 0, now()

    async def caller() -> None:
        nonlocal answered
        try:
            await predict(PredictionRequest(M, (text(),), deadline=now() + chance.choice(deadlines)))
            answered += now() <= begun + SECONDS
        except (Overloaded, DeadlineExceeded):
            pass

    async with asyncio.TaskGroup() as callers:
        while now() < begun + SECONDS:
            callers.create_task(caller())
            await asyncio.sleep(chance.expovariate(rate))
    return answered / SECONDS


@virtual_time
@pytest.mark.parametrize("deviation", [0.0, 0.15])
@pytest.mark.parametrize(
    ("load", "deadlines", "least"),
    [
        (2.0, (0.5,), 0.9),
        (5.0, (0.5,), 0.8),
        (2.0, (1.0,), 0.97),
        (2.0, (10.0,), 0.97),
        (2.0, (0.3, 0.5, 1.0, 3.0), 0.9),
    ],
)
async def test_under_overload_nearly_the_whole_capacity_is_answered_in_time(
    load: float, deadlines: Sequence[float], least: float, deviation: float
) -> None:
    whole = await capacity(PaddingModel(deviation))

    share = await goodput(PaddingModel(deviation), load * whole, deadlines) / whole

    assert share >= least


@virtual_time
async def test_a_model_that_slows_down_loses_little_more_than_it_is_slower() -> None:
    whole = await capacity(PaddingModel(0.15))
    steady = now()

    share = await goodput(PaddingModel(0.15, slower=steady), 2 * whole, (1.0,)) * 1.5 / whole

    assert share >= 0.95
