from __future__ import annotations

import asyncio
import math
from dataclasses import replace

import pytest

from application.policies.caching import Caching
from application.policies.coalescing import Coalescing
from application.policies.deadline import Deadline
from domain.errors import DeadlineExceeded
from domain.prediction import CacheControl, CacheUse, ModelRef, PredictionRequest, PredictionResult, Refusal
from infrastructure.memory_cache import MemoryCache
from tests.fakes import FakeServer
from tests.unit.flights import answers, ask, begun, leaving_nothing_behind, outcomes, settled
from tests.virtual_time import now


@leaving_nothing_behind
async def test_ten_thousand_callers_for_one_cold_key_ask_once() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)

    results = await asyncio.gather(*(predict(ask("x")) for _ in range(10_000)))

    assert (len(server.asked), now()) == (1, 1.0)
    assert {result.predictions for result in results} == {answers("x")}
    assert sum(result.collapsed for result in results) == 9_999
    assert predict._flights == {}


@leaving_nothing_behind
async def test_a_lone_request_is_answered_as_it_would_have_been() -> None:
    answer = PredictionResult(
        ModelRef("m", "1.0.7"),
        (1, None, Refusal(422, "no")),
        0.25,
        CacheUse(0, 3, 60.0, stored=True),
        collapsed=True,
    )
    asked = []

    async def inner(request: PredictionRequest) -> PredictionResult:
        asked.append(replace(request, fingerprints=()))
        return answer

    request = replace(ask("x", "y", "z", deadline=3.0), parameters={"k": 1}, partition="p")

    assert await Coalescing(inner)(request) == answer
    assert asked == [request]


@leaving_nothing_behind
async def test_who_comes_after_the_answer_asks_again() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)

    results = [await predict(ask("x")) for _ in range(2)]

    assert (len(server.asked), [result.collapsed for result in results]) == (2, [False, False])


@leaving_nothing_behind
@pytest.mark.parametrize("turn", range(8))
async def test_who_comes_in_any_turn_while_the_answer_lands_finds_it_or_its_flight(turn: int) -> None:
    lands = asyncio.Event()
    asked = []

    async def model(request: PredictionRequest) -> PredictionResult:
        asked.append(request)
        await lands.wait()
        return PredictionResult(request.model, request.instances)

    predict = Caching(Coalescing(model), cache=MemoryCache(10_000, now), ttl=60.0)
    crowd = [await begun(predict, ask("x")) for _ in range(3)]
    lands.set()
    for _ in range(turn):
        await asyncio.sleep(0)
    results = await asyncio.gather(*crowd, predict(ask("x")))

    assert ({each.predictions for each in results}, len(asked)) == ({("x",)}, 1)


@leaving_nothing_behind
async def test_an_answer_that_a_passenger_of_another_flight_carries_still_is_there_for_who_wants_it() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    starter = await begun(predict, ask("x"))
    server.seconds = 5.0
    both = await begun(predict, ask("x", "y"))
    starter.cancel()
    await asyncio.sleep(2.0)

    result = await predict(ask("x"))

    assert (result.predictions, result.collapsed, now()) == (answers("x"), True, 2.0)
    assert (await both).predictions == answers("x", "y")
    assert ([each.instances for each in server.asked], predict._flights) == ([("x",), ("y",)], {})


@leaving_nothing_behind
async def test_a_flight_outlives_the_caller_who_started_it() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    starter, other = await begun(predict, ask("x")), await begun(predict, ask("x"))

    starter.cancel()
    gone, result = await outcomes(starter, other)

    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(result, PredictionResult)
    assert (result.predictions, len(server.asked), server.cancelled, now()) == (answers("x"), 1, 0, 1.0)


@leaving_nothing_behind
async def test_the_last_passenger_cancels_the_flight() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    first, last = await begun(predict, ask("x")), await begun(predict, ask("x"))

    first.cancel()
    await settled()
    assert server.cancelled == 0
    last.cancel()
    await settled()

    assert (server.cancelled, predict._flights) == (1, {})


@leaving_nothing_behind
async def test_nobody_boards_a_flight_that_is_being_cancelled() -> None:
    slow_to_end = asyncio.Event()
    asked = []

    async def model(request: PredictionRequest) -> PredictionResult:
        asked.append(request)
        try:
            await asyncio.sleep(1.0)
        finally:
            await slow_to_end.wait()
        return PredictionResult(request.model, request.instances)

    predict = Coalescing(model)
    left = await begun(predict, ask("x"))
    left.cancel()
    await settled()
    newcomer = await begun(predict, ask("x"))
    slow_to_end.set()

    assert (await newcomer).predictions == ("x",)
    assert (len(asked), predict._flights) == (2, {})


@leaving_nothing_behind
async def test_a_newcomer_in_the_very_turn_that_the_last_passenger_leaves_is_answered() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    left = await begun(predict, ask("x"))
    left.add_done_callback(lambda _: newcomers.append(asyncio.ensure_future(predict(ask("x")))))
    newcomers: list[asyncio.Future[PredictionResult]] = []

    left.cancel()
    await settled()

    assert (await newcomers[0]).predictions == answers("x")


@leaving_nothing_behind
async def test_a_caller_who_is_cancelled_before_its_flight_took_off_leaves_nothing() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    caller = asyncio.ensure_future(predict(ask("x")))
    asyncio.get_running_loop().call_soon(caller.cancel)

    await outcomes(caller)
    await settled()

    assert predict._flights == {}
    assert (await predict(ask("x"))).predictions == answers("x")


@leaving_nothing_behind
async def test_a_cancelled_passenger_disturbs_nobody() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    callers = [await begun(predict, ask("x")) for _ in range(10)]

    for cancelled in callers[1::2]:
        cancelled.cancel()
    found = await outcomes(*callers)

    assert [isinstance(each, asyncio.CancelledError) for each in found] == [False, True] * 5
    assert {each.predictions for each in found if isinstance(each, PredictionResult)} == {answers("x")}
    assert (len(server.asked), server.cancelled) == (1, 0)


@leaving_nothing_behind
async def test_a_passenger_who_is_cancelled_in_the_very_turn_of_the_answer_disturbs_nobody() -> None:
    callers: list[asyncio.Task[PredictionResult]] = []

    async def model(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(1.0)
        callers[0].cancel()
        return PredictionResult(request.model, request.instances)

    predict = Coalescing(model)
    callers += [await begun(predict, ask("x")), await begun(predict, ask("x"))]
    gone, result = await outcomes(*callers)

    assert isinstance(gone, asyncio.CancelledError)
    assert isinstance(result, PredictionResult)
    assert result.predictions == ("x",)


@leaving_nothing_behind
async def test_a_passenger_of_two_flights_who_leaves_cancels_only_the_one_that_is_its_own() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    other, both = await begun(predict, ask("a")), await begun(predict, ask("a", "b"))

    both.cancel()
    await outcomes(both)

    assert (await other).predictions == answers("a")
    assert (server.cancelled, [each.instances for each in server.asked]) == (1, [("a",), ("b",)])


@leaving_nothing_behind
async def test_interactive_work_never_waits_on_a_bulk_flight() -> None:
    server = FakeServer(seconds=5.0)
    predict = Coalescing(server.predict)
    bulk = await begun(predict, ask("x", bulk=True))
    server.seconds = 1.0

    result = await predict(ask("x"))

    assert (result.predictions, now(), result.collapsed) == (answers("x"), 1.0, False)
    assert (await bulk).predictions == answers("x")
    assert predict._flights == {}


@leaving_nothing_behind
async def test_bulk_work_waits_on_an_interactive_flight_and_on_a_bulk_one() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)

    await asyncio.gather(
        predict(ask("x")),
        predict(ask("x", bulk=True)),
        predict(ask("y", bulk=True)),
        predict(ask("y", bulk=True)),
    )

    assert [each.instances for each in server.asked] == [("x",), ("y",)]


@leaving_nothing_behind
async def test_the_end_of_an_overtaken_flight_does_not_end_the_one_that_overtook_it() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    bulk = await begun(predict, ask("x", bulk=True))
    server.seconds = 5.0
    interactive = await begun(predict, ask("x"))

    await bulk
    third = await predict(ask("x"))

    assert (third.collapsed, len(server.asked)) == (True, 2)
    await interactive


@leaving_nothing_behind
async def test_overlapping_requests_ask_for_each_instance_once() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)

    one, two = await asyncio.gather(predict(ask("a", "b")), predict(ask("b", "c")))

    assert (one.predictions, two.predictions) == (answers("a", "b"), answers("b", "c"))
    assert [each.instances for each in server.asked] == [("a", "b"), ("c",)]
    assert (one.collapsed, two.collapsed, now()) == (False, True, 1.0)


@leaving_nothing_behind
async def test_an_instance_that_comes_twice_in_a_request_is_asked_for_once_and_answered_twice() -> None:
    server = FakeServer()

    result = await Coalescing(server.predict)(ask("x", "y", "x", 1, "1", 1))

    assert result.predictions == answers("x", "y", "x", 1, "1", 1)
    assert [sorted(map(str, each.instances)) for each in server.asked] == [["1", "1", "x", "y"]]
    assert not result.collapsed


@leaving_nothing_behind
async def test_the_same_input_to_two_pipelines_is_two_questions() -> None:
    server = FakeServer(seconds=1.0)
    one, two = Coalescing(server.predict), Coalescing(server.predict)
    other = replace(ask("x"), model=ModelRef("m", "2.0"))

    results = await asyncio.gather(one(ask("x")), two(other))

    assert [each.predictions[0] for each in results] == ["a:m/1.0:x", "a:m/2.0:x"]
    assert len(server.asked) == 2


@leaving_nothing_behind
@pytest.mark.parametrize(
    "other",
    [
        replace(ask("x"), partition="tenant"),
        replace(ask("x"), parameters={"top_k": 1}),
        replace(ask("x"), model=ModelRef("n", "1.0")),
    ],
)
async def test_another_question_joins_nobody(other: PredictionRequest) -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)

    await asyncio.gather(predict(ask("x")), predict(other))

    assert len(server.asked) == 2


@leaving_nothing_behind
async def test_no_cache_joins_nobody_and_is_joined_by_nobody() -> None:
    server = FakeServer(seconds=1.0)
    predict = Coalescing(server.predict)
    fresh = replace(ask("x"), cache=CacheControl(read=False))

    await asyncio.gather(predict(fresh), predict(ask("x")), predict(fresh))

    assert len(server.asked) == 3


@leaving_nothing_behind
async def test_a_result_says_the_longest_that_a_server_took_and_what_was_stored_for_how_long() -> None:
    async def model(request: PredictionRequest) -> PredictionResult:
        seconds = {"a": 1.0, "b": 2.0}.get(str(request.instances[0]), 3.0)
        await asyncio.sleep(seconds)
        cache = CacheUse(0, 1, 10.0 * seconds, stored=True) if seconds < 3.0 else None
        return PredictionResult(request.model, request.instances, seconds, cache)

    predict = Coalescing(model)
    _, _, both, all_three = await asyncio.gather(*(predict(ask(*i)) for i in ("a", "b", "ab", "abc")))

    assert (both.server_seconds, both.cache) == (2.0, CacheUse(0, 2, 10.0, stored=True))
    assert (all_three.server_seconds, all_three.cache) == (3.0, None)


@leaving_nothing_behind
async def test_what_another_process_had_begun_is_passed_on_where_an_instance_comes_twice() -> None:
    async def elsewhere(request: PredictionRequest) -> PredictionResult:
        return PredictionResult(request.model, request.instances, collapsed=True)

    result = await Coalescing(elsewhere)(ask("x", "x"))

    assert (result.predictions, result.collapsed) == (("x", "x"), True)


@leaving_nothing_behind
async def test_a_model_that_answers_without_waiting_is_asked_without_ado() -> None:
    async def instant(request: PredictionRequest) -> PredictionResult:
        return PredictionResult(request.model, request.instances)

    predict = Coalescing(instant)

    assert (await predict(ask("x", "y"))).predictions == ("x", "y")
    assert predict._flights == {}


@leaving_nothing_behind
async def test_each_caller_waits_no_longer_than_its_own_deadline() -> None:
    server = FakeServer(seconds=5.0)
    predict = Deadline(Coalescing(server.predict), default=math.inf, cap=100.0)
    hasty, patient = (
        await begun(predict, ask("x", deadline=1.0)),
        await begun(predict, ask("x", deadline=9.0)),
    )

    with pytest.raises(DeadlineExceeded):
        await hasty

    assert now() == 1.0
    assert (await patient).predictions == answers("x")
    assert (now(), len(server.asked)) == (5.0, 1)
