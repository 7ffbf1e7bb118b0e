from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from application.policies.admission import Admission
from application.policies.deadline import Deadline
from domain.concurrency_limit import Gradient2
from domain.errors import DeadlineExceeded, DispatchError, Overloaded, RequestRejected, ServerBusy
from domain.events import Shed
from domain.prediction import ModelRef, PredictionRequest, PredictionResult
from tests.fakes import FakeServer
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.events import Event
    from domain.ports import Predictor

M = ModelRef("m", "1.0")


def fixed(limit: int) -> Gradient2:
    return Gradient2(initial=limit, maximum=limit, floor=lambda: limit)


def admission(
    inner: Predictor, limit: int | Gradient2 = 1, *, max_waiting: int = 100, heard: list[Event] | None = None
) -> Admission:
    observe = (heard if heard is not None else []).append
    rule = fixed(limit) if isinstance(limit, int) else limit
    return Admission(
        inner, limit=rule, max_waiting=max_waiting, bulk_share=0.1, in_order=True, observe=observe
    )


def ask(
    name: str = "x", weight: int = 1, *, within: float | None = None, bulk: bool = False
) -> PredictionRequest:
    deadline = None if within is None else now() + within
    return PredictionRequest(M, (name,) * weight, deadline=deadline, bulk=bulk)


async def started(predict: Predictor, *requests: PredictionRequest) -> list[asyncio.Task[PredictionResult]]:
    tasks = [asyncio.create_task(predict(each)) for each in requests]
    await asyncio.sleep(0.001)
    return tasks


async def taught(server: FakeServer, limit: int = 1) -> Admission:
    """One that has seen how fast `server` is when it is busy."""
    predict = admission(server.predict, limit)
    await asyncio.gather(*(predict(ask()) for _ in range(30)))
    server.asked.clear()
    return predict


def order(server: FakeServer) -> list[object]:
    return [request.instances[0] for request in server.asked]


@virtual_time
async def test_with_room_a_request_goes_straight_through() -> None:
    predict = admission(FakeServer().predict, 2)

    assert (await predict(ask())).predictions == ("a:m/1.0:x",)
    assert (predict.in_flight, predict.waiting, predict.limit) == (0, 0, 2)


@virtual_time
async def test_without_room_requests_wait_and_the_earliest_deadline_goes_first() -> None:
    server = FakeServer(seconds=1.0)
    predict = admission(server.predict)

    tasks = await started(
        predict, ask("first"), ask("never"), ask("late", within=9), ask("soon", within=7), ask("last")
    )

    assert (predict.in_flight, predict.waiting) == (1, 4)
    await asyncio.gather(*tasks)
    assert order(server) == ["first", "soon", "late", "never", "last"]


@virtual_time
async def test_a_request_weighs_its_instances() -> None:
    server = FakeServer(seconds=1.0)
    predict = admission(server.predict, 8)

    tasks = await started(predict, ask(weight=5), ask(weight=4))

    assert (predict.in_flight, predict.waiting) == (5, 4)
    await asyncio.gather(*tasks)


@virtual_time
async def test_a_request_heavier_than_the_limit_goes_in_alone() -> None:
    server = FakeServer(seconds=1.0)
    predict = admission(server.predict, 4, max_waiting=10)

    tasks = await started(predict, ask(weight=2), ask("heavy", 9, within=60))
    await asyncio.gather(*tasks, predict(ask("before", within=30)))

    assert order(server) == ["x", "before", "heavy"]


@virtual_time
async def test_a_full_queue_refuses_at_once_and_says_so() -> None:
    heard: list[Event] = []
    predict = admission(FakeServer(seconds=1.0).predict, max_waiting=2, heard=heard)
    tasks = await started(predict, *[ask()] * 3)
    asked_at = now()

    with pytest.raises(Overloaded, match=r"in progress: 1, waiting: 2. No more may wait."):
        await predict(ask())

    assert now() == asked_at
    assert heard == [Shed(M, 1, "full")]
    await asyncio.gather(*tasks)


@virtual_time
async def test_an_answer_that_would_come_too_late_is_refused_at_once_with_the_reason() -> None:
    predict = await taught(FakeServer(seconds=0.1))
    tasks = await started(predict, *[ask()] * 20)

    detail = r"progress: 1, waiting: 19. At 10 a second .* in 1.1 s, but its time is over in 1 s"
    with pytest.raises(Overloaded, match=detail) as refusal:
        await predict(ask(within=1.0, bulk=True))

    assert refusal.value.retry_after == pytest.approx(2.0, abs=0.1)
    await asyncio.gather(*tasks)


@virtual_time
async def test_work_behind_it_in_the_queue_does_not_count_against_a_request() -> None:
    server = FakeServer(seconds=0.1)
    predict = await taught(server)
    tasks = await started(predict, *[ask("patient", within=60)] * 20)

    await predict(ask("urgent", within=0.5))

    assert order(server)[:2] == ["patient", "urgent"]
    await asyncio.gather(*tasks)


@virtual_time
async def test_nobody_is_refused_while_nothing_is_in_flight() -> None:
    predict = await taught(FakeServer(seconds=0.1))

    assert await predict(ask(within=0.05))


@virtual_time
async def test_a_long_pause_makes_old_pessimism_void() -> None:
    server = FakeServer(seconds=1.0)
    predict = await taught(server, 20)
    server.seconds = 0.1
    await asyncio.sleep(60)

    assert await asyncio.gather(*(predict(ask(within=0.5)) for _ in range(20)))


@virtual_time
async def test_a_waiter_who_cannot_make_it_any_more_is_refused_when_its_turn_comes() -> None:
    server = FakeServer(seconds=0.1)
    predict = await taught(server, 2)
    server.seconds = 3.0
    slow = await started(predict, ask("slow"))
    server.seconds = 5.0
    slower, waiter = await started(predict, ask("slower"), ask("waits", within=3.05))

    with pytest.raises(Overloaded, match="answered in"):
        await waiter

    assert now() < 4.0 + 1.6
    assert order(server) == ["slow", "slower"]
    await asyncio.gather(*slow, slower)


@virtual_time
async def test_a_waiter_whose_time_is_over_is_never_sent() -> None:
    server = FakeServer(seconds=1.0)
    first, waiter = await started(admission(server.predict), ask("first"), ask("waits", within=0.5))

    with pytest.raises(DeadlineExceeded):
        await waiter

    assert order(server) == ["first"]
    await first


@virtual_time
async def test_a_cancelled_waiter_leaves_at_once() -> None:
    server = FakeServer(seconds=1.0)
    predict = admission(server.predict)
    first, waiter, last = await started(predict, ask("first"), ask("gone"), ask("last"))

    waiter.cancel()
    await asyncio.sleep(0)

    assert predict.waiting == 1
    await asyncio.gather(first, last)
    assert order(server) == ["first", "last"]


@virtual_time
@pytest.mark.parametrize("let_in", [True, False])
async def test_a_waiter_cancelled_as_its_turn_comes_gives_its_place_to_the_next(*, let_in: bool) -> None:
    gate: asyncio.Future[PredictionResult] = asyncio.get_running_loop().create_future()

    async def inner(request: PredictionRequest) -> PredictionResult:
        return await gate if request.instances == ("first",) else PredictionResult(M, request.instances)

    predict = admission(inner)
    first, gone, last = await started(predict, ask("first"), ask("gone"), ask("last"))
    gate.set_result(PredictionResult(M, ()))
    if let_in:  # just after its turn came, and before it woke up
        asyncio.get_running_loop().call_soon(gone.cancel)
    else:
        gone.cancel()
    await asyncio.gather(first, gone, return_exceptions=True)

    assert (await last).predictions == ("last",)
    assert (predict.in_flight, predict.waiting) == (0, 0)


@virtual_time
async def test_interactive_requests_go_first_and_bulk_still_gets_its_share() -> None:
    server = FakeServer(seconds=0.01)
    predict = admission(server.predict, max_waiting=200)
    bulk = await started(predict, *[ask("bulk", bulk=True)] * 50)
    interactive = await started(predict, *[ask("interactive")] * 90)

    await asyncio.gather(*bulk, *interactive)

    while_both_wait = order(server)[1 : order(server).index("interactive") + 90]
    assert 8 <= while_both_wait.count("bulk") <= 10


@virtual_time
async def test_a_heavy_bulk_request_waits_for_its_share_and_no_longer() -> None:
    server = FakeServer(seconds=0.01)
    predict = admission(server.predict, 4, max_waiting=200)
    first = await started(predict, *[ask()] * 4)
    bulk = await started(predict, ask("bulk", 4, bulk=True))
    interactive = await started(predict, *[ask()] * 80)

    await asyncio.gather(*first, *bulk, *interactive)

    assert 36 <= order(server).index("bulk") - 4 <= 40


@virtual_time
async def test_a_request_that_fits_does_not_wait_behind_heavy_bulk() -> None:
    predict = admission(FakeServer(seconds=1.0).predict, 4)

    tasks = await started(predict, ask(weight=2), ask(weight=4, bulk=True), ask(weight=2))

    assert (predict.in_flight, predict.waiting) == (4, 4)
    await asyncio.gather(*tasks)


@virtual_time
async def test_bulk_may_use_all_that_interactive_leaves_free() -> None:
    predict = admission(FakeServer(seconds=1.0).predict, 8)

    tasks = await started(predict, *[ask(bulk=True)] * 8)

    assert (predict.in_flight, predict.waiting) == (8, 0)
    await asyncio.gather(*tasks)


@virtual_time
@pytest.mark.parametrize(("error", "shrinks"), [(ServerBusy(), True), (RequestRejected(), False)])
async def test_only_a_dropped_request_shrinks_the_limit(error: DispatchError, *, shrinks: bool) -> None:
    predict = admission(FakeServer(seconds=0.1, error=error).predict, Gradient2(initial=20))

    for _ in range(10):
        await asyncio.gather(*(predict(ask()) for _ in range(20)), return_exceptions=True)

    assert (predict.limit < 20) is shrinks


@virtual_time
async def test_an_answer_that_missed_its_deadline_shrinks_the_limit() -> None:
    predict = admission(FakeServer(seconds=10.0).predict, Gradient2(initial=20))
    outer = Deadline(predict, default=0.5, cap=60.0)

    for _ in range(3):
        await asyncio.gather(*(outer(ask()) for _ in range(20)), return_exceptions=True)

    assert predict.limit < 20


@dataclass
class BatchServer:
    """Answers up to 32 instances together, 10 ms and 7 ms each; the next batch gathers meanwhile."""

    slowness: float = 1.0
    pending: dict[asyncio.Future[None], int] = field(default_factory=dict)
    busy: bool = False

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending[answered] = len(request.instances)
        self._send()
        try:
            await answered
        finally:
            self.pending.pop(answered, None)
        return PredictionResult(request.model, request.instances)

    def _send(self) -> None:
        batch: dict[asyncio.Future[None], int] = {}
        while (
            not self.busy and self.pending and sum(batch.values()) + next(iter(self.pending.values())) <= 32
        ):
            first = next(iter(self.pending))
            batch[first] = self.pending.pop(first)
        if batch:
            self.busy = True
            seconds = self.slowness * (0.010 + 0.007 * sum(batch.values()))
            asyncio.get_running_loop().call_later(seconds, self._answer, list(batch))

    def _answer(self, batch: list[asyncio.Future[None]]) -> None:
        self.busy = False
        for each in batch:
            if not each.done():
                each.set_result(None)
        self._send()


CAPACITY = 32 / (0.010 + 0.007 * 32)  # instances a second


async def goodput(load: float, deadlines: Sequence[float], slower: float, seconds: float) -> float:
    """Answers in time ÷ capacity, under Poisson arrivals of `load` times that; `slower` from half-time on."""
    chance = random.Random(1)
    server = BatchServer()
    predict = Deadline(admission(server, Gradient2(floor=lambda: 64), max_waiting=1000), default=9.0, cap=9.0)
    answered = 0

    async def caller() -> None:
        nonlocal answered
        try:
            await predict(ask(within=chance.choice(deadlines)))
            answered += now() <= seconds
        except (Overloaded, DeadlineExceeded):
            pass

    async with asyncio.TaskGroup() as callers:
        while now() < seconds:
            callers.create_task(caller())
            await asyncio.sleep(chance.expovariate(load * CAPACITY))
            server.slowness = slower if now() > seconds / 2 else 1.0
    return answered / (CAPACITY * seconds * (1 + 1 / slower) / 2)


@virtual_time
@pytest.mark.parametrize(
    ("load", "deadlines", "slower", "least"),
    [
        (2.0, (0.5,), 1.0, 0.97),
        (5.0, (0.5,), 1.0, 0.97),
        (1.2, (0.5,), 1.0, 0.97),
        (2.0, (0.3, 0.5, 1.0, 3.0), 1.0, 0.97),
        (2.0, (0.3,), 1.0, 0.95),
        (2.0, (1.0,), 2.0, 0.97),
        (2.0, (0.5,), 2.0, 0.95),  # two full batches in a row take 936 ms now; halves of them lose 4 %
        (2.0, (0.5,), 0.5, 0.97),
    ],
)
async def test_under_overload_the_server_works_for_answers_that_come_in_time(
    load: float, deadlines: Sequence[float], slower: float, least: float
) -> None:
    seconds = 40.0 if slower == 1.0 else 60.0  # what is in flight at the turn is lost once

    assert await goodput(load, deadlines, slower, seconds) >= least
