"""Batching changes when and how often a model is asked, never what it answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from application.policies.batching import Batching
from domain.batch import BatchQueue, PaddedBatchQueue, Waiting, batch_cost
from domain.errors import (
    DeadlineExceeded,
    DispatchError,
    InputRejectedByModel,
    Overloaded,
    PayloadTooLarge,
    ServerFault,
)
from domain.prediction import ModelRef, PredictionRequest, PredictionResult, Refusal
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.prediction import Json, Prediction

M = ModelRef("m", "1.0")
MOST_FAULTY = 3  # callers whose requests fault; with more a server may count as broken


@dataclass(frozen=True)
class Call:
    """A request that comes at `at`; its caller leaves `patience` seconds later, where that is given."""

    at: float
    texts: tuple[str, ...]
    parameters: dict[str, Json]
    deadline: float | None
    patience: float | None

    @property
    def request(self) -> PredictionRequest:
        return PredictionRequest(M, self.texts, self.parameters, deadline=self.deadline)

    @property
    def guilty(self) -> bool:
        return any(map(is_guilty, self.texts))


@dataclass(frozen=True)
class Limits:
    slots: int
    max_size: int
    max_cost: int | None


def is_guilty(text: Json) -> bool:
    return str(text).isupper()


def length(text: Json) -> int:
    return len(str(text))


class Model:
    """Fails with `error` where one instance is guilty; sees that `limits` are kept. Long texts take long."""

    def __init__(self, error: DispatchError, limits: Limits) -> None:
        self.error = error
        self.limits = limits
        self.in_flight = 0
        self.broke_limits = False

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        self.in_flight += 1
        try:
            self.check([length(text) for text in request.instances])
            await asyncio.sleep(max(map(length, request.instances)) / 4)
            if any(map(is_guilty, request.instances)):
                raise self.error
            return PredictionResult(M, tuple(answer(text, request) for text in request.instances))
        finally:
            self.in_flight -= 1

    def check(self, costs: Sequence[int]) -> None:
        too_dear = (
            self.limits.max_cost is not None and len(costs) > 1 and batch_cost(costs) > self.limits.max_cost
        )
        if too_dear or len(costs) > self.limits.max_size or self.in_flight > self.limits.slots:
            self.broke_limits = True

    def bare(self, request: PredictionRequest) -> tuple[Prediction, ...] | DispatchError:
        """What a caller is told by whoever asks for nobody else."""
        if not any(map(is_guilty, request.instances)):
            return tuple(answer(text, request) for text in request.instances)
        if isinstance(self.error, InputRejectedByModel) and len(request.instances) > 1:
            refusal = Refusal(self.error.code, str(self.error))
            return tuple(refusal if is_guilty(t) else answer(t, request) for t in request.instances)
        return self.error


def answer(text: Json, request: PredictionRequest) -> str:
    return f"{text} {dict(request.parameters)!r}"


times = st.integers(0, 20).map(lambda quarter: quarter / 4)
texts = st.builds(lambda n, letter: letter * n, st.integers(1, 8), st.sampled_from("aaaaab") | st.just("X"))
calls = st.lists(
    st.builds(
        Call,
        at=times,
        texts=st.lists(texts, min_size=1, max_size=6).map(tuple),
        parameters=st.sampled_from([{}, {}, {"k": True}, {"k": 1}]),
        deadline=st.none() | st.none() | times,
        patience=st.none() | st.none() | times,
    ),
    min_size=1,
    max_size=24,
)
limits = st.builds(
    Limits, slots=st.integers(1, 3), max_size=st.integers(1, 8), max_cost=st.none() | st.integers(1, 40)
)
errors = st.sampled_from([InputRejectedByModel("no", code=415), PayloadTooLarge(), ServerFault()])


async def outcome(predict: Batching, call: Call) -> PredictionResult | DispatchError | None:
    """What `call` came to; None where its caller left."""
    await asyncio.sleep(call.at)
    try:
        async with asyncio.timeout(call.patience):
            return await predict(call.request)
    except TimeoutError:
        return None
    except DispatchError as error:
        if isinstance(error, DeadlineExceeded):
            assert call.deadline is not None
            assert now() >= call.deadline
        return error


@given(calls, limits, errors)
@virtual_time
async def test_whoever_meets_whom_every_caller_is_told_what_the_bare_model_says(
    calls: list[Call], limits: Limits, error: DispatchError
) -> None:
    if isinstance(error, ServerFault):
        faulty = [call for call in calls if call.guilty]
        calls = [call for call in calls if call not in faulty[MOST_FAULTY:]]
    model = Model(error, limits)
    cost = None if limits.max_cost is None else length
    predict = Batching(
        model.predict,
        slots=lambda: limits.slots,
        max_size=limits.max_size,
        max_cost=limits.max_cost,
        cost=cost,
        observe=lambda _: None,
    )

    outcomes = await asyncio.gather(*(outcome(predict, call) for call in calls))
    await asyncio.sleep(0)

    for call, came in zip(calls, outcomes, strict=True):
        told = came.predictions if isinstance(came, PredictionResult) else came
        if told is None:
            assert call.patience is not None
        elif isinstance(told, Overloaded):  # it gave way to others, who had more time
            assert call.deadline is not None
            assert len(calls) > 1
        elif not isinstance(told, DeadlineExceeded):
            assert told == model.bare(call.request)
    assert not model.broke_limits
    assert model.in_flight == 0
    # Nothing is left behind: no public sign says so.
    assert (predict._queues, predict._senders, predict._in_flight) == ({}, {}, 0)


waiting = st.builds(
    Waiting[None],
    deadline=st.integers(0, 3).map(float),
    arrival=st.integers(0, 10),
    position=st.integers(0, 3),
    cost=st.integers(1, 9),
    caller=st.none(),
)
lines = st.lists(waiting, unique_by=lambda each: (each.deadline, each.arrival, each.position))


@given(lines, st.integers(1, 5), st.none() | st.integers(1, 30))
def test_every_batch_has_the_first_in_line_and_whoever_is_nearest_to_it(
    line: list[Waiting[None]], max_size: int, max_cost: int | None
) -> None:
    queue: PaddedBatchQueue[None] = PaddedBatchQueue(max_size, max_cost)
    for each in line:
        queue.add(each)

    while queue:
        first = queue.first
        batch = queue.take()
        line = [each for each in line if each not in batch]
        assert first in batch
        assert all(first <= each for each in line)
        farthest = max(abs(each.cost - first.cost) for each in batch)
        nearer = [each for each in line if abs(each.cost - first.cost) < farthest]
        grown = [batch_cost([each.cost, *(one.cost for one in batch)]) for each in nearer]
        assert len(batch) <= max_size
        assert max_cost is None or all(cost > max_cost for cost in grown)
        assert not (max_cost is None and nearer)
    assert line == []


@given(lines, st.booleans(), st.integers(0, 10))
def test_what_is_removed_is_never_taken(line: list[Waiting[None]], padded: bool, left: int) -> None:
    queue: BatchQueue[None] = PaddedBatchQueue(2, 9) if padded else BatchQueue(2)
    for each in line:
        queue.add(each)

    for deadline in range(4):
        queue.remove(float(deadline), left)

    taken = []
    while queue:
        taken += queue.take()
    assert sorted(taken) == sorted(each for each in line if each.arrival != left)
