"""What is asked again, and what is not."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from interface.batch.asking import Asking, Outcome, Question
from interface.batch.stops import GaveUp, Unusable
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable

    Reply = Callable[[list[Any]], httpx.Response | None]


def problem(status: int, kind: str, **more: Any) -> httpx.Response:
    body = {"type": f"/problems/{kind}", "title": kind, "status": status, "detail": f"It is {kind}.", **more}
    headers = {"retry-after": "7"} if status in {429, 503} else {}
    return httpx.Response(status, json=body, headers=headers)


def pointing(*indexes: int, kind: str = "input-rejected-by-model") -> httpx.Response:
    errors = [{"pointer": f"#/instances/{i}/text", "detail": f"{i} is bad"} for i in indexes]
    return problem(422, kind, errors=errors)


class FakeGateway(httpx.AsyncBaseTransport):
    """Doubles numbers, unless `reply` has something else to say; it remembers what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self.asked: list[list[Any]] = []
        self.headers = httpx.Headers()
        self.lives = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/gateway/health/live":
            return httpx.Response(200 if self.lives else 502)
        assert request.url.path == "/gateway/dispatch_model"
        body = json.loads(await request.aread())
        assert (body["model_name"], body["model_version"], body["parameters"]) == ("m", "2", {"k": 1})
        self.asked.append(body["instances"])
        self.headers = request.headers
        found = self._reply(body["instances"])
        if found is not None:
            return found
        doubled = [2 * each for each in body["instances"]]
        return httpx.Response(200, json={"model_name": "m", "model_version": "2", "predictions": doubled})

    def asking(self, patience: float = 600.0) -> Asking:
        client = httpx.AsyncClient(transport=self, base_url="http://there/gateway")
        return Asking(client, Question("m", "2", {"k": 1}), most=32, in_flight=8, patience=patience)


def in_turn(*replies: httpx.Response | Exception | None) -> Reply:
    """These, and no objection after them."""
    left = list(replies)

    def reply(_: list[Any]) -> httpx.Response | None:
        found = left.pop(0) if left else None
        if isinstance(found, Exception):
            raise found
        return found

    return reply


def texts(*numbers: int) -> list[bytes]:
    return [str(number).encode() for number in numbers]


def details(outcomes: list[Outcome]) -> list[Any]:
    return [each.problem["detail"] if each.problem else each.prediction for each in outcomes]


@virtual_time
async def test_instances_travel_together_and_as_bulk_work() -> None:
    gateway = FakeGateway(in_turn())

    assert details(await gateway.asking().answer(texts(1, 2, 3))) == [2, 4, 6]
    assert gateway.asked == [[1, 2, 3]]
    assert (gateway.headers["priority"], gateway.headers["x-request-timeout"]) == ("u=6", "60")


@virtual_time
async def test_nothing_is_asked_for_no_instances() -> None:
    gateway = FakeGateway(in_turn())

    assert await gateway.asking().answer([]) == []
    assert gateway.asked == []


@pytest.mark.parametrize(
    "passing",
    [
        problem(503, "overloaded"),
        problem(502, "server-unreachable"),
        problem(504, "deadline-exceeded"),
        httpx.Response(502, text="<html>nginx"),
        httpx.Response(429),
        httpx.ConnectError("refused"),
        httpx.RemoteProtocolError("closed"),
        httpx.ReadTimeout("silent"),
    ],
    ids=str,
)
def test_what_passes_is_asked_again(passing: httpx.Response | Exception) -> None:
    @virtual_time
    async def test() -> None:
        gateway = FakeGateway(in_turn(passing, passing, passing))
        asking = gateway.asking()

        assert details(await asking.answer(texts(1))) == [2]
        assert len(gateway.asked) == 4
        assert asking.trouble is None

    test()


@virtual_time
async def test_where_a_gateway_that_lives_breaks_off_the_row_fails_that_it_breaks_off_at() -> None:
    def breaks_off_at_two(instances: list[Any]) -> None:
        if 2 in instances:
            raise httpx.ReadError("reset")

    gateway = FakeGateway(breaks_off_at_two)

    outcomes = await gateway.asking().answer(texts(1, 2, 3))

    assert (outcomes[0].prediction, outcomes[2].prediction) == (2, 6)
    assert outcomes[1].problem is not None
    assert outcomes[1].problem["title"] == "The gateway breaks off"
    assert now() >= 3, "who is started again just now should not cost a row"


@virtual_time
async def test_where_a_gateway_breaks_off_and_is_gone_it_is_waited_for() -> None:
    gateway = FakeGateway(in_turn(*[httpx.ReadError("reset")] * 20))
    gateway.lives = False

    assert details(await gateway.asking().answer(texts(1))) == [2]


@virtual_time
async def test_nobody_comes_back_before_retry_after() -> None:
    gateway = FakeGateway(in_turn(problem(503, "overloaded")))

    await gateway.asking().answer(texts(1))

    assert now() >= 7


@virtual_time
async def test_patience_ends_when_nothing_has_been_answered_for_so_long() -> None:
    gateway = FakeGateway(in_turn(None, *[httpx.ConnectError("refused")] * 10_000))
    asking = gateway.asking(patience=100)
    await asking.answer(texts(1))

    with pytest.raises(GaveUp, match=r"The gateway does not answer .* Run the same command to go on"):
        await asking.answer(texts(2))

    assert now() == pytest.approx(100)
    assert 10 < len(gateway.asked) < 100


@virtual_time
async def test_instances_that_are_pointed_at_fail_and_the_others_are_asked_again() -> None:
    gateway = FakeGateway(in_turn(pointing(1, 3), pointing(0)))

    outcomes = await gateway.asking().answer(texts(10, 11, 12, 13))

    assert details(outcomes) == ["0 is bad", "1 is bad", 24, "3 is bad"]
    assert gateway.asked == [[10, 11, 12, 13], [10, 12], [12]]
    assert outcomes[1].problem is not None
    assert "errors" not in outcomes[1].problem


@virtual_time
async def test_when_all_are_refused_nobody_is_asked_again() -> None:
    gateway = FakeGateway(in_turn(pointing(0, 1)))

    assert details(await gateway.asking().answer(texts(1, 2))) == ["0 is bad", "1 is bad"]
    assert len(gateway.asked) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        problem(400, "input-rejected-by-model"),
        problem(404, "input-rejected-by-model"),
        problem(400, "malformed-request"),
        problem(413, "payload-too-large"),
        problem(422, "invalid-request", errors=[{"pointer": "#", "detail": "nested too deeply"}]),
        problem(422, "input-rejected-by-model", errors=[{"pointer": "#/instances/99", "detail": "?"}]),
        problem(422, "input-rejected-by-model", errors=[17]),
        httpx.Response(413, text="<html>nginx"),
        httpx.Response(418),
    ],
    ids=str,
)
def test_a_refusal_that_points_at_nobody_is_searched_for_by_halves(refusal: httpx.Response) -> None:
    @virtual_time
    async def test() -> None:
        gateway = FakeGateway(lambda instances: refusal if 5 in instances else None)

        outcomes = await gateway.asking().answer(texts(*range(8)))

        assert [each.problem is not None for each in outcomes] == [i == 5 for i in range(8)]
        assert details(outcomes)[:5] == [0, 2, 4, 6, 8]
        assert len(gateway.asked) == 7

    test()


@pytest.mark.parametrize("kind", ["server-fault", "server-timeout", "internal-error"])
def test_a_row_that_its_server_fails_on_again_and_again_fails_alone(kind: str) -> None:
    @virtual_time
    async def test() -> None:
        gateway = FakeGateway(lambda instances: problem(502, kind) if 5 in instances else None)

        outcomes = await gateway.asking().answer(texts(*range(8)))

        assert [each.problem is not None for each in outcomes] == [i == 5 for i in range(8)]
        assert Counter(map(tuple, gateway.asked))[5,] == 4
        assert now() >= 3, "the server had no time to recover"

    test()


@virtual_time
async def test_a_fault_that_passes_costs_no_row() -> None:
    fault = problem(502, "server-fault")
    gateway = FakeGateway(in_turn(fault, fault, fault, problem(503, "server-busy"), fault))

    assert details(await gateway.asking().answer(texts(1, 2))) == [2, 4]


@virtual_time
async def test_a_model_that_fails_on_everything_ends_patience() -> None:
    gateway = FakeGateway(lambda _: problem(502, "server-fault"))
    asking = gateway.asking(patience=60)

    async def one_by_one() -> None:
        for number in range(1000):
            await asking.answer(texts(number))

    with pytest.raises(GaveUp, match="server-fault"):
        await one_by_one()
    assert now() == pytest.approx(60)


@virtual_time
async def test_what_takes_too_long_is_asked_in_smaller_parts_and_soon_in_larger_ones_again() -> None:
    gateway = FakeGateway(lambda them: problem(504, "deadline-exceeded") if len(them) > 8 else None)
    asking = gateway.asking()

    outcomes = await asking.answer(texts(*range(32)))
    assert details(outcomes) == [2 * i for i in range(32)]
    assert asking.size < 32

    for _ in range(40):
        await asking.answer(texts(*range(8)))
    assert asking.size > 8


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (problem(404, "model-not-found"), "It is model-not-found."),
        (problem(404, "version-not-found"), "It is version-not-found."),
        (
            problem(422, "invalid-request", errors=[{"pointer": "#/parameters", "detail": "?"}]),
            "invalid-request",
        ),
        (httpx.Response(404), "there answers 404"),
        (httpx.Response(401), "there answers 401"),
        (httpx.Response(301, headers={"location": "https://there"}), "there answers 301"),
        (httpx.Response(200, text="<html>Welcome"), "not a Model Dispatcher"),
        (httpx.Response(200, json={"model_version": "1", "predictions": []}), "not a Model Dispatcher"),
    ],
)
def test_what_no_row_can_change_ends_it_at_once(answer: httpx.Response, told: str) -> None:
    @virtual_time
    async def test() -> None:
        gateway = FakeGateway(lambda _: answer)

        with pytest.raises(Unusable, match=told):
            await gateway.asking().answer(texts(1, 2))
        assert len(gateway.asked) == 1

    test()


@virtual_time
async def test_a_model_that_was_there_is_waited_for() -> None:
    gateway = FakeGateway(in_turn(None, *[problem(404, "model-not-found")] * 3))
    asking = gateway.asking()
    await asking.answer(texts(1))

    assert details(await asking.answer(texts(2))) == [4]
    assert asking.versions == {"2"}
