from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING

import pytest

from domain.errors import (
    DeadlineExceeded,
    ServerBusy,
    ServerFault,
)
from domain.events import BatchSent
from domain.prediction import PredictionRequest, PredictionResult
from tests.fakes import FakeServer
from tests.unit.batches import (
    M,
    ask,
    batching,
    kinds,
    sent,
    signed,
    start,
    together,
)
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from domain.events import Event

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


@virtual_time
async def test_a_lone_request_waits_for_nothing() -> None:
    server = FakeServer(seconds=1.0)
    request = ask("x")
    tasks_before = asyncio.all_tasks()
    seen: list[set[asyncio.Task[object]]] = []

    async def inner(request: PredictionRequest) -> PredictionResult:
        seen.append(asyncio.all_tasks())
        return await server.predict(request)

    result = await batching(inner)(request)

    assert (result.predictions, now()) == (signed("x"), 1.0)
    assert (server.asked, seen) == ([request], [tasks_before])


@virtual_time
async def test_requests_that_meet_while_all_slots_are_busy_leave_together() -> None:
    heard: list[Event] = []
    server = FakeServer(seconds=1.0)

    results = await together(batching(server.predict, heard=heard), ask("b"), ask("c", "d"))

    assert results == [PredictionResult(M, signed("b")), PredictionResult(M, signed("c", "d"))]
    assert (sent(server), now()) == ([("first",), ("b", "c", "d")], 2.0)
    assert heard == [BatchSent(M, 1, 1, 0.0), BatchSent(M, 3, 2, 1.0)]


@virtual_time
async def test_a_request_leaves_at_once_while_a_slot_is_free() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: 3)

    waiting = await start(predict, *(ask(text) for text in "abcde"))
    at_once = sent(server)
    await asyncio.gather(*waiting)

    assert at_once == [("a",), ("b",), ("c",)]
    assert sent(server)[3:] == [("d", "e")]


@virtual_time
async def test_a_full_batch_leaves_the_rest_for_the_next() -> None:
    server = FakeServer(seconds=1.0)

    await together(batching(server.predict, max_size=2), *(ask(text) for text in "abc"))

    assert sent(server) == [("first",), ("a", "b"), ("c",)]


@virtual_time
async def test_more_workers_are_more_slots() -> None:
    slots = 1
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: slots, max_size=1)

    waiting = await start(predict, *(ask(text) for text in "abcd"))
    slots = 3
    await start(predict, ask("e"))
    in_flight = len(server.asked)
    await asyncio.gather(*waiting)

    assert in_flight == 3
    assert now() == 2.0


@virtual_time
async def test_fewer_workers_are_fewer_slots_as_soon_as_a_batch_lands() -> None:
    slots = 3
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: slots, max_size=1)

    waiting = await start(predict, *(ask(text) for text in "abcdefghi"))
    await asyncio.sleep(1.5)
    slots = 1
    await asyncio.gather(*waiting)

    assert now() == 5.0


@virtual_time
async def test_a_model_without_workers_is_still_asked() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: 0)

    await together(predict, ask("a"))

    assert sent(server) == [("first",), ("a",)]


@virtual_time
async def test_the_next_batch_is_on_its_way_before_the_callers_of_the_last_go_on() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, max_size=1)
    sent_by_then: list[int] = []

    async def caller(text: str) -> None:
        await predict(ask(text))
        sent_by_then.append(len(server.asked))

    await asyncio.gather(*(caller(text) for text in "abc"))

    assert sent_by_then[1:] == [3, 3]


@virtual_time
@pytest.mark.parametrize("error", [ServerFault(), ServerBusy(), RuntimeError("a bug")])
async def test_a_slot_that_fails_is_free_again(error: Exception) -> None:
    async def failing(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(len(request.instances))
        raise error

    predict = batching(failing)

    for _ in range(2):
        with pytest.raises(type(error)):
            await predict(ask("x"))
        outcomes = await asyncio.gather(*(predict(ask(t)) for t in "ab"), return_exceptions=True)
        assert outcomes == [error, error]


@virtual_time
async def test_a_batch_acts_in_the_context_of_none_of_its_callers() -> None:
    seen: list[str | None] = []

    async def inner(request: PredictionRequest) -> PredictionResult:
        seen.append(REQUEST_ID.get())
        await asyncio.sleep(1.0)
        return PredictionResult(M, request.instances)

    REQUEST_ID.set("mine")
    await together(batching(inner), ask("a"), ask("b"))

    assert seen == ["mine", None]


@virtual_time
async def test_expired_requests_are_never_sent() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict)

    results = await together(predict, ask("late", deadline=0.5), ask("b"), ask("due", deadline=1.0))
    with pytest.raises(DeadlineExceeded):
        await predict(ask("past", deadline=now()))

    assert kinds(results) == ["DeadlineExceeded", "answered", "DeadlineExceeded"]
    assert sent(server) == [("first",), ("b",)]


@virtual_time
async def test_a_cancelled_caller_does_not_disturb_its_batch() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict)
    _, leaving, waiting, staying = await start(predict, ask("a"), ask("b"), ask("c"), ask("d"))

    waiting.cancel()
    await asyncio.sleep(1.5)
    leaving.cancel()

    assert (await staying).predictions == signed("d")
    assert (leaving.cancelled(), server.cancelled, sent(server)) == (True, 0, [("a",), ("b", "d")])


@virtual_time
async def test_the_last_leaving_caller_cancels_the_call() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict)
    _, b, c = await start(predict, ask("a"), ask("b"), ask("c"))
    await asyncio.sleep(1.5)

    b.cancel()
    await start(predict)
    cancelled_by_the_first = server.cancelled
    c.cancel()
    await start(predict)

    assert (cancelled_by_the_first, server.cancelled) == (0, 1)
    assert (await predict(ask("d"))).predictions == signed("d")
    assert now() == 2.5


@virtual_time
async def test_a_caller_that_leaves_an_inline_call_frees_its_slot_for_those_who_wait() -> None:
    server = FakeServer(seconds=1.0)
    first, second = await start(batching(server.predict), ask("a"), ask("b"))

    first.cancel()
    await second

    assert (server.cancelled, sent(server), now()) == (1, [("a",), ("b",)], 1.0)


@virtual_time
async def test_a_request_that_failed_in_part_is_given_up_in_whole() -> None:
    quick, slow = FakeServer(seconds=1.0, error=ServerBusy()), FakeServer(seconds=9.0)

    async def inner(request: PredictionRequest) -> PredictionResult:
        server = quick if "a" in request.instances else slow
        return await server.predict(request)

    with pytest.raises(ServerBusy):
        await batching(inner, slots=lambda: 2, max_size=1)(ask("a", "b", "c"))
    await asyncio.sleep(0)

    assert (sent(slow), slow.cancelled, now()) == ([("b",)], 1, 1.0)


@virtual_time
async def test_a_call_that_is_cancelled_from_inside_leaves_nobody_waiting() -> None:
    async def inner(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(1.0)
        if request.instances[0] != "first":
            raise asyncio.CancelledError
        return PredictionResult(M, request.instances)

    predict = batching(inner)

    assert kinds(await together(predict, ask("a"), ask("b"))) == ["CancelledError"] * 2
    assert (await predict(ask("first"))).predictions == ("first",)
