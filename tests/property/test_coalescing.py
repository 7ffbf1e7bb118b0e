"""Whoever arrives when, leaves or fails: coalescing changes when a model is asked, never what it answers."""

from __future__ import annotations

import asyncio
import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from application.policies.coalescing import Coalescing
from application.policies.deadline import Deadline
from domain.errors import DeadlineExceeded, InputRejectedByModel, ServerFault
from domain.prediction import CacheControl, ModelRef, PredictionRequest, PredictionResult, ServerAddress
from tests.virtual_time import VirtualLoop, now

if TYPE_CHECKING:
    from domain.ports import Predictor

M = ModelRef("m", "1.0")
POISON = "poison"
BROKEN = ServerAddress(port=666)
SECONDS = {"a": 1.0, "b": 2.0, "c": 0.0, POISON: 1.0}


@dataclass(frozen=True)
class Caller:
    """Arrives, waits at most so long, and perhaps loses interest; times in tenths of a second."""

    arrives: int
    instances: tuple[str, ...]
    patience: int
    leaves_after: int | None
    bulk: bool
    broken: bool
    fresh: bool

    def request(self) -> PredictionRequest:
        return PredictionRequest(
            M,
            self.instances,
            server=BROKEN if self.broken else ServerAddress(),
            deadline=self.deadline,
            cache=CacheControl(read=not self.fresh),
            bulk=self.bulk,
        )

    @property
    def deadline(self) -> float:
        return (self.arrives + self.patience) / 10


callers = st.builds(
    Caller,
    arrives=st.integers(0, 40),
    instances=st.lists(st.sampled_from(sorted(SECONDS)), min_size=1, max_size=4).map(tuple),
    patience=st.integers(1, 60),
    leaves_after=st.none() | st.integers(0, 30),
    bulk=st.booleans(),
    broken=st.sampled_from([False, False, False, True]),
    fresh=st.sampled_from([False, False, False, True]),
)


async def model(request: PredictionRequest) -> PredictionResult:
    """Takes as long as its slowest instance, but not longer than the request may; then answers or fails."""
    assert request.deadline is not None
    try:
        async with asyncio.timeout_at(request.deadline):
            await asyncio.sleep(max(SECONDS[str(each)] for each in request.instances))
    except TimeoutError:
        raise DeadlineExceeded from None
    if request.server == BROKEN:
        raise ServerFault
    if POISON in request.instances:
        raise InputRejectedByModel
    return PredictionResult(M, tuple(f"answer to {each}" for each in request.instances))


async def live(caller: Caller, predict: Predictor) -> PredictionResult | BaseException:
    await asyncio.sleep(caller.arrives / 10)
    asking = asyncio.ensure_future(predict(caller.request()))
    if caller.leaves_after is not None:
        asyncio.get_running_loop().call_later(caller.leaves_after / 10, asking.cancel)
    (outcome,) = await asyncio.gather(asking, return_exceptions=True)
    if isinstance(outcome, DeadlineExceeded):
        assert now() >= caller.deadline - 1e-6
    assert now() <= caller.deadline + 0.01 + 1e-6  # Cutoffs are so exact
    return outcome


def check(caller: Caller, outcome: PredictionResult | BaseException) -> None:
    if isinstance(outcome, asyncio.CancelledError):
        assert caller.leaves_after is not None
    elif isinstance(outcome, ServerFault):
        assert caller.broken
    elif isinstance(outcome, InputRejectedByModel):
        assert POISON in caller.instances
    elif not isinstance(outcome, DeadlineExceeded):
        assert isinstance(outcome, PredictionResult), outcome
        assert outcome.predictions == tuple(f"answer to {each}" for each in caller.instances)
        assert POISON not in caller.instances


@given(st.lists(callers, min_size=1, max_size=8))
def test_every_answer_is_the_bare_models_and_nothing_is_left(crowd: list[Caller]) -> None:
    complaints: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        flights = Coalescing(model)
        predict = Deadline(flights, default=10.0, cap=10.0)
        outcomes = await asyncio.gather(*(live(caller, predict) for caller in crowd))
        await asyncio.sleep(0.001)
        for caller, outcome in zip(crowd, outcomes, strict=True):
            check(caller, outcome)
        assert flights._flights == {}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())
    gc.collect(1)
    assert complaints == []
