from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING

import pytest

from application.pipeline import compose
from application.policies.attempt_timeout import AttemptTimeout
from application.policies.balancing import Balancing
from application.policies.deadline import Deadline
from domain.errors import (
    DeadlineExceeded,
    ModelNotFound,
    NoServerAvailable,
    ServerFault,
    ServerTimeout,
    ServerUnreachable,
)
from domain.events import AttemptFailed, ServerLost
from domain.fleet import ServedModel
from domain.prediction import ModelRef, PredictionRequest, PredictionResult, ServerAddress
from tests.fakes import FakeServer, fleet_of
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from application.fleet import Fleet
    from domain.events import Event
    from domain.ports import Predictor

M = ModelRef("m", "1.0")
ASK = PredictionRequest(M, ("x",))


def balancing(fleet: Fleet, heard: list[Event] | None = None) -> Balancing:
    observe = (heard if heard is not None else []).append
    attempt = partial(AttemptTimeout, seconds=5.0)
    return Balancing(fleet, attempt=attempt, observe=observe, clock=now, pick=random.Random(0).sample)


@virtual_time
async def test_the_first_policy_is_the_outermost() -> None:
    def naming(name: str, inner: Predictor) -> Predictor:
        async def named(request: PredictionRequest) -> PredictionResult:
            result = await inner(request)
            return PredictionResult(result.model, (f"{name}({result.predictions[0]})",))

        return named

    predict = compose([partial(naming, "outer"), partial(naming, "inner")], FakeServer().predict)

    assert (await predict(ASK)).predictions == ("outer(inner(a:m/1.0:x))",)


@virtual_time
async def test_a_request_without_a_deadline_gets_the_default() -> None:
    server = FakeServer(seconds=60)

    with pytest.raises(DeadlineExceeded, match="within 3 s"):
        await Deadline(server.predict, default=3.0, cap=100.0)(ASK)

    assert (now(), server.cancelled) == (3.0, 1)


@virtual_time
async def test_no_caller_waits_longer_than_the_cap() -> None:
    patient = PredictionRequest(M, ("x",), deadline=now() + 1000)

    with pytest.raises(DeadlineExceeded):
        await Deadline(FakeServer(seconds=60).predict, default=3.0, cap=10.0)(patient)

    assert now() == 10.0


@virtual_time
async def test_an_expired_request_is_never_sent() -> None:
    server = FakeServer()

    with pytest.raises(DeadlineExceeded):
        await Deadline(server.predict, default=3.0, cap=10.0)(PredictionRequest(M, ("x",), deadline=now()))

    assert server.asked == []


@virtual_time
async def test_everything_inside_is_told_the_deadline() -> None:
    server = FakeServer()

    await Deadline(server.predict, default=3.0, cap=10.0)(ASK)

    assert server.asked[0].deadline == 3.0


@virtual_time
async def test_a_timeout_of_the_inner_predictor_is_not_taken_for_the_deadline() -> None:
    async def broken(request: PredictionRequest) -> PredictionResult:
        raise TimeoutError(request)

    for policy in (Deadline(broken, default=3.0, cap=10.0), AttemptTimeout(broken, seconds=1.0)):
        with pytest.raises(TimeoutError):
            await policy(ASK)


@virtual_time
async def test_a_slow_server_gets_only_its_share_of_the_deadline() -> None:
    server = FakeServer(seconds=60)
    predict = Deadline(AttemptTimeout(server.predict, seconds=2.0), default=30.0, cap=30.0)

    with pytest.raises(ServerTimeout, match="within 2 s"):
        await predict(ASK)

    assert (now(), server.cancelled) == (2.0, 1)


@virtual_time
async def test_a_callers_own_short_deadline_is_not_the_servers_timeout() -> None:
    predict = Deadline(AttemptTimeout(FakeServer(seconds=60).predict, seconds=2.0), default=1.0, cap=30.0)

    with pytest.raises(DeadlineExceeded):
        await predict(ASK)


@virtual_time
async def test_the_busier_server_is_spared() -> None:
    slow, fast = FakeServer("slow", seconds=1.0), FakeServer("fast", seconds=0.1)
    fleet = fleet_of(slow, fast)
    await fleet.refresh()
    predict = balancing(fleet)

    for _ in range(4):
        await asyncio.gather(*(predict(ASK) for _ in range(10)))

    assert len(fast.asked) > 3 * len(slow.asked) > 0


@virtual_time
async def test_only_servers_that_have_the_model_ready_are_asked() -> None:
    other = FakeServer("other", models=(ServedModel("else", "1.0"),))
    dead = FakeServer("dead", models=(ServedModel("m", "1.0", workers_ready=0),))
    good = FakeServer("good")
    fleet = fleet_of(other, dead, good)
    await fleet.refresh()

    answers = {(await balancing(fleet)(ASK)).predictions for _ in range(20)}

    assert answers == {("good:m/1.0:x",)}


@virtual_time
async def test_without_a_ready_server_the_caller_is_told_why_at_once() -> None:
    dead = FakeServer("dead", models=(ServedModel("m", "1.0", workers=2, workers_ready=0),))
    down = FakeServer("down", probe_error=ServerUnreachable("connection refused"))
    fleet = fleet_of(dead, down)
    await fleet.refresh()

    with pytest.raises(NoServerAvailable) as refusal:
        await balancing(fleet)(ASK)

    assert "dead: has no ready worker for m/1.0 (2 configured)" in str(refusal.value)
    assert "down: connection refused" in str(refusal.value)
    assert (dead.asked, down.asked) == ([], [])


@virtual_time
async def test_a_caller_may_insist_on_one_server() -> None:
    a, b = FakeServer("a"), FakeServer("b")
    fleet = fleet_of(a, b)
    await fleet.refresh()
    only_b = PredictionRequest(M, ("x",), server=ServerAddress("127.0.0.1", 8081))

    for _ in range(10):
        await balancing(fleet)(only_b)

    assert (len(a.asked), len(b.asked)) == (0, 10)


@virtual_time
async def test_a_server_that_cannot_be_reached_is_left_alone_until_it_is_asked_again() -> None:
    heard: list[Event] = []
    server = FakeServer(error=ServerUnreachable())
    fleet = fleet_of(server, heard=heard)
    await fleet.refresh()
    predict = balancing(fleet, heard)

    with pytest.raises(ServerUnreachable):
        await predict(ASK)
    with pytest.raises(NoServerAvailable):
        await predict(ASK)
    server.error = None
    await fleet.refresh()

    assert (await predict(ASK)).predictions == ("a:m/1.0:x",)
    assert [type(event) for event in heard][1:3] == [AttemptFailed, ServerLost]


@virtual_time
async def test_a_fault_of_one_request_does_not_take_the_server_out() -> None:
    server = FakeServer(error=ServerFault())
    fleet = fleet_of(server)
    await fleet.refresh()
    predict = balancing(fleet)

    for _ in range(2):
        with pytest.raises(ServerFault):
            await predict(ASK)

    assert len(server.asked) == 2
    assert fleet.servers[0].load.in_flight == 0


@virtual_time
async def test_the_result_says_how_long_the_server_took() -> None:
    fleet = fleet_of(FakeServer(seconds=0.25))
    await fleet.refresh()

    assert (await balancing(fleet)(ASK)).server_seconds == pytest.approx(0.25)


@virtual_time
@pytest.mark.parametrize("bad", [FakeServer("bad", seconds=60.0), FakeServer("bad", error=ServerFault())])
async def test_a_server_that_fails_or_hangs_does_not_attract_the_traffic(bad: FakeServer) -> None:
    good = FakeServer("good", seconds=0.1)
    fleet = fleet_of(bad, good)
    await fleet.refresh()
    predict = balancing(fleet)

    for _ in range(20):
        await asyncio.gather(*(predict(ASK) for _ in range(10)), return_exceptions=True)

    assert len(bad.asked) < 40
    assert len(good.asked) > 160


@virtual_time
async def test_a_server_that_no_longer_has_the_model_costs_no_caller_an_answer() -> None:
    emptied = FakeServer("emptied", error=ModelNotFound())
    fleet = fleet_of(emptied, FakeServer("full"))
    await fleet.refresh()

    answers = {(await balancing(fleet)(ASK)).predictions for _ in range(20)}

    assert answers == {("full:m/1.0:x",)}
    assert len(emptied.asked) <= 1


@virtual_time
async def test_a_model_that_no_server_has_any_more_is_not_found() -> None:
    fleet = fleet_of(FakeServer(error=ModelNotFound("gone")))
    await fleet.refresh()

    with pytest.raises(ModelNotFound, match="gone"):
        await balancing(fleet)(ASK)
