from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from application.policies.admission import Admission
from application.policies.deadline import Deadline
from domain.concurrency_limit import Gradient2
from domain.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerBusy, ServerFault
from domain.prediction import ModelRef, PredictionRequest, PredictionResult
from tests.virtual_time import VirtualLoop, now

M = ModelRef("m", "1.0")
ERRORS = [None, None, None, ServerBusy(), ServerFault(), InvalidRequest()]


@dataclass
class Call:
    at: float
    weight: int
    allowed: float | None
    bulk: bool
    takes: float
    fails: int
    cancelled_after: float | None
    outcome: object = None


CALLS = st.lists(
    st.builds(
        Call,
        at=st.floats(0, 2),
        weight=st.integers(1, 12),
        allowed=st.none() | st.floats(0.01, 2),
        bulk=st.booleans(),
        takes=st.floats(0, 0.5),
        fails=st.integers(0, len(ERRORS) - 1),
        cancelled_after=st.none() | st.floats(0, 1),
    ),
    max_size=40,
)


@dataclass
class Watched:
    """Answers call number i, which it finds as the request's instances, and watches the limit."""

    calls: list[Call]
    limit: int
    in_flight: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    broken: bool = False

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        number = request.instances[0]
        assert isinstance(number, int)
        call = self.calls[number]
        self.in_flight.append(call.weight)
        self.begun.append(number)
        self.broken |= sum(self.in_flight) > self.limit and len(self.in_flight) > 1
        try:
            await asyncio.sleep(call.takes)
        finally:
            self.in_flight.remove(call.weight)
        error = ERRORS[call.fails]
        if error is not None:
            raise error
        return PredictionResult(request.model, request.instances)


async def run(calls: list[Call], limit: int, max_waiting: int) -> tuple[Watched, Admission]:
    inner = Watched(calls, limit)
    gradient = Gradient2(initial=limit, maximum=limit, floor=lambda: limit)
    admission = Admission(
        inner, limit=gradient, max_waiting=max_waiting, bulk_share=0.1, in_order=True, observe=lambda _: None
    )
    predict = Deadline(admission, default=60.0, cap=60.0)

    async def ask(number: int, call: Call) -> None:
        await asyncio.sleep(call.at)
        deadline = None if call.allowed is None else now() + call.allowed
        request = PredictionRequest(M, (number,) * call.weight, deadline=deadline, bulk=call.bulk)
        try:
            async with asyncio.timeout(call.cancelled_after):
                call.outcome = await predict(request)
        except (Overloaded, DeadlineExceeded, ServerBusy, ServerFault, InvalidRequest, TimeoutError) as error:
            call.outcome = error

    await asyncio.gather(*(ask(number, call) for number, call in enumerate(calls)))
    return inner, admission


@settings(max_examples=150)
@given(CALLS, st.integers(1, 16), st.integers(1, 40))
def test_everybody_hears_the_limit_holds_and_nothing_is_left(
    calls: list[Call], limit: int, max_waiting: int
) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        inner, admission = runner.run(run(calls, limit, max_waiting))

    assert all(call.outcome is not None for call in calls)
    assert not inner.broken
    assert (admission.in_flight, admission.waiting) == (0, 0)


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(20, 50), st.booleans()), max_size=20), st.integers(1, 4))
def test_of_those_who_wait_the_earliest_deadline_of_each_kind_is_first(
    waiting: list[tuple[float, bool]], limit: int
) -> None:
    first = [Call(0.0, limit, 60.0, bulk=False, takes=1.0, fails=0, cancelled_after=None)]
    calls = first + [Call(0.1, 1, allowed, bulk, 0.1, 0, None) for allowed, bulk in waiting]

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        inner, _ = runner.run(run(calls, limit, 100))

    for bulk in (False, True):
        allowed = [calls[i].allowed for i in inner.begun[1:] if calls[i].bulk is bulk]
        assert allowed == sorted(allowed, key=lambda seconds: seconds or 0.0)
