from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from application.policies.coalescing import Coalescing
from domain.errors import DeadlineExceeded, DispatchError, InputRejectedByModel, Overloaded, ServerFault
from domain.prediction import PredictionRequest, PredictionResult, ServerAddress
from tests.fakes import FakeServer
from tests.unit.flights import answers, ask, begun, leaving_nothing_behind, outcomes
from tests.virtual_time import now


class Poisoned(FakeServer):
    """Refuses any request that has "poison" in it, and answers the rest."""

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        result = await super().predict(request)
        if "poison" in request.instances:
            raise InputRejectedByModel("poison")
        return result


class Hurried(FakeServer):
    """Gives up when the time of the request is over."""

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        try:
            async with asyncio.timeout_at(request.deadline):
                return await super().predict(request)
        except TimeoutError:
            raise DeadlineExceeded from None


@leaving_nothing_behind
@pytest.mark.parametrize("instances", [("x",), ("x", "y")])
async def test_an_error_reaches_all_who_asked_the_same(instances: tuple[str, ...]) -> None:
    server = FakeServer(seconds=1.0, error=ServerFault("broken"))
    predict = Coalescing(server.predict)

    callers = [await begun(predict, ask(*instances, deadline=9.0 + i)) for i in range(1_000)]
    found = await outcomes(*callers)

    assert (len(server.asked), {str(each) for each in found}, predict._flights) == (1, {"broken"}, {})


@leaving_nothing_behind
async def test_a_thousand_who_raise_one_error_do_not_make_it_grow() -> None:
    error = ServerFault()
    predict = Coalescing(FakeServer(seconds=1.0, error=error).predict)

    await asyncio.gather(*(predict(ask("x")) for _ in range(1_000)), return_exceptions=True)

    frames, traceback = 0, error.__traceback__
    while traceback is not None:
        frames, traceback = frames + 1, traceback.tb_next
    assert frames < 10


@leaving_nothing_behind
async def test_an_error_of_the_next_request_is_not_the_last_ones() -> None:
    server = FakeServer(error=ServerFault())
    predict = Coalescing(server.predict)
    with pytest.raises(ServerFault):
        await predict(ask("x"))
    server.error = None

    assert (await predict(ask("x"))).predictions == answers("x")


@leaving_nothing_behind
async def test_a_passenger_with_more_time_than_the_flight_that_ran_out_of_it_asks_again() -> None:
    server = Hurried(seconds=2.0)
    predict = Coalescing(server.predict)

    hasty, patient = (
        await begun(predict, ask("x", deadline=1.0)),
        await begun(predict, ask("x", deadline=9.0)),
    )
    error, result = await outcomes(hasty, patient)

    assert isinstance(error, DeadlineExceeded)
    assert isinstance(result, PredictionResult)
    assert (result.predictions, len(server.asked), now()) == (answers("x"), 2, 3.0)


@leaving_nothing_behind
async def test_a_passenger_without_a_deadline_asks_again_where_time_ran_out() -> None:
    server = Hurried(seconds=2.0)
    predict = Coalescing(server.predict)

    _, patient = await begun(predict, ask("x", deadline=1.0)), await begun(predict, ask("x"))

    assert (await patient).predictions == answers("x")


@leaving_nothing_behind
async def test_a_passenger_with_no_more_time_than_the_flight_that_ran_out_of_it_does_not_ask_again() -> None:
    server = Hurried(seconds=9.0)
    predict = Coalescing(server.predict)

    callers = [await begun(predict, ask("x", deadline=deadline)) for deadline in (2.0, 2.0, 1.0)]
    found = await outcomes(*callers)

    assert [type(each) for each in found] == [DeadlineExceeded] * 3
    assert len(server.asked) == 1


@leaving_nothing_behind
@pytest.mark.parametrize("error", [Overloaded(), DeadlineExceeded()])
async def test_a_crowd_that_is_refused_for_want_of_time_asks_only_once_more(error: DispatchError) -> None:
    server = FakeServer(seconds=1.0, error=error)
    predict = Coalescing(server.predict)

    callers = [await begun(predict, ask("x", deadline=100.0 + i % 37)) for i in range(1_000)]
    found = await outcomes(*callers)

    assert (len(server.asked), {type(each) for each in found}) == (2, {type(error)})
    assert server.asked[1].deadline == 136.0


@leaving_nothing_behind
async def test_an_error_of_a_flight_that_carried_other_instances_is_not_the_passengers() -> None:
    server = Poisoned(seconds=1.0)
    predict = Coalescing(server.predict)

    guilty, innocent = await begun(predict, ask("poison", "x")), await begun(predict, ask("x"))
    error, result = await outcomes(guilty, innocent)

    assert isinstance(error, InputRejectedByModel)
    assert isinstance(result, PredictionResult)
    assert (result.predictions, [each.instances for each in server.asked]) == (
        answers("x"),
        [("poison", "x"), ("x",)],
    )


@leaving_nothing_behind
async def test_who_asked_for_more_than_a_flight_that_failed_does_not_ask_again() -> None:
    server = Poisoned(seconds=1.0)
    predict = Coalescing(server.predict)

    guilty = await begun(predict, ask("poison"))
    server.seconds = 5.0
    too = await begun(predict, ask("x", "poison", "y"))
    found = await outcomes(guilty, too)

    assert [type(each) for each in found] == [InputRejectedByModel] * 2
    assert [each.instances for each in server.asked] == [("poison",), ("x", "y")]
    assert (server.cancelled, now()) == (1, 1.0)


@leaving_nothing_behind
async def test_a_failure_that_was_not_ours_costs_us_only_what_it_should_have_brought() -> None:
    server = Poisoned(seconds=1.0)
    predict = Coalescing(server.predict)

    _, innocent = await begun(predict, ask("poison", "x")), await begun(predict, ask("y", "x", "z"))

    assert (await innocent).predictions == answers("y", "x", "z")
    assert [each.instances for each in server.asked] == [("poison", "x"), ("y", "z"), ("x",)]


@leaving_nothing_behind
async def test_a_crowd_whose_flight_failed_for_a_reason_of_its_own_asks_once_more() -> None:
    server = Poisoned(seconds=1.0)
    predict = Coalescing(server.predict)
    await begun(predict, ask("poison", "x"))

    results = await asyncio.gather(*(predict(ask("x")) for _ in range(1_000)))

    assert {result.predictions for result in results} == {answers("x")}
    assert [each.instances for each in server.asked] == [("poison", "x"), ("x",)]


@leaving_nothing_behind
async def test_who_asks_again_does_not_board_another_flight_that_may_fail_for_a_reason_of_its_own() -> None:
    server = Poisoned(seconds=1.0)
    predict = Coalescing(server.predict)
    await begun(predict, ask("poison", "x"))
    server.seconds = 1.5
    innocent = await begun(predict, ask("x", "y"))
    await asyncio.sleep(1.25)
    await begun(predict, ask("x", "poison"))
    await asyncio.sleep(0)

    assert (await innocent).predictions == answers("x", "y")
    assert now() == 3.0


@leaving_nothing_behind
async def test_a_named_servers_error_is_not_that_of_who_named_another() -> None:
    async def model(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(1.0)
        if request.server.port == 1:
            raise ServerFault
        return PredictionResult(request.model, request.instances)

    predict = Coalescing(model)
    bad = await begun(predict, replace(ask("x"), server=ServerAddress(port=1)))
    others = [
        await begun(predict, replace(ask("x"), server=ServerAddress(port=port))) for port in (1, 2, None)
    ]
    found = await outcomes(bad, *others)

    assert [isinstance(each, ServerFault) for each in found] == [True, True, False, False]


@leaving_nothing_behind
async def test_a_model_that_answers_too_little_fails_for_all_and_strands_nobody() -> None:
    async def short(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(1.0)
        return PredictionResult(request.model, ())

    predict = Coalescing(short)

    found = await asyncio.gather(predict(ask("x")), predict(ask("x")), return_exceptions=True)

    assert [type(each) for each in found] == [ValueError] * 2
    assert predict._flights == {}


@leaving_nothing_behind
async def test_who_is_cancelled_inside_cancels_all_on_board() -> None:
    async def broken(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(1.0)
        raise asyncio.CancelledError(request)

    predict = Coalescing(broken)
    callers = [await begun(predict, ask("x")) for _ in range(2)]

    found = await outcomes(*callers)

    assert [type(each) for each in found] == [asyncio.CancelledError] * 2
    assert predict._flights == {}
