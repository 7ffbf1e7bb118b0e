from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain.errors import (
    DispatchError,
    InputRejectedByModel,
    InvalidRequest,
    ModelNotFound,
    PayloadTooLarge,
    ServerBusy,
    ServerError,
    ServerFault,
    ServerUnreachable,
    VersionNotFound,
)
from domain.prediction import ModelRef, PredictionRequest, PredictionResult, Refusal
from infrastructure.torchserve.channel import Channel
from infrastructure.torchserve.client import TorchServeClient
from infrastructure.torchserve.exchange import FAILURES, translated
from infrastructure.torchserve.management import PingProbe
from tests.unit.torchserve.raw_server import (
    Answer,
    RawServer,
    Received,
    Reply,
    always,
    captured,
    channel_to,
    client,
    ok,
    one_by_one,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from domain.ports import Predictor
    from domain.prediction import Json

MODEL = ModelRef("m", "1.0")
BOTH = PredictionRequest(MODEL, ("good", "bad"))


@contextlib.asynccontextmanager
async def torchserve(answer: Answer, *, bare: bool = False) -> AsyncIterator[tuple[Predictor, RawServer]]:
    async with serving(answer) as server, channel_to(server.url) as channel:
        yield TorchServeClient(channel, payload=lambda _: "body" if bare else "instances"), server


async def asked(answer: Answer, request: PredictionRequest = BOTH, *, bare: bool = False) -> PredictionResult:
    async with torchserve(answer, bare=bare) as (predict, _):
        return await predict(request)


async def failed(answer: Answer, request: PredictionRequest = BOTH, *, bare: bool = False) -> DispatchError:
    with pytest.raises(DispatchError) as raised:
        await asked(answer, request, bare=bare)
    return raised.value


# --- what is sent


async def test_a_request_carries_the_instances_and_nothing_else() -> None:
    async with torchserve(always(captured("two_predictions"))) as (predict, server):
        await predict(PredictionRequest(ModelRef("m"), (1, {"text": "é"})))

    (received,) = server.received
    assert received.line == "POST /predictions/m HTTP/1.1"
    assert received.body == '{"instances":[1,{"text":"é"}]}'.encode()
    assert {name.lower(): value for name, value in received.headers.items()} == {
        "host": server.url.removeprefix("http://"),
        "content-type": "application/json",
        "content-length": str(len(received.body)),
    }


async def test_parameters_travel_only_where_there_are_some() -> None:
    async with torchserve(always(captured("two_predictions"))) as (predict, server):
        await predict(PredictionRequest(MODEL, (1, 2), parameters={"top_k": 3}))

    assert server.received[0].json == {"instances": [1, 2], "parameters": {"top_k": 3}}


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (ModelRef("m", "2.0"), "/predictions/m/2.0"),
        (ModelRef("a b?c#d%2F;é"), "/predictions/a%20b%3Fc%23d%252F%3B%C3%A9"),
        (ModelRef("m\\..\\x", "1&2"), "/predictions/m%5C..%5Cx/1%262"),
        (ModelRef("m\r\nX: y"), "/predictions/m%0D%0AX%3A%20y"),
    ],
)
async def test_a_name_is_one_segment_of_the_path(model: ModelRef, path: str) -> None:
    async with torchserve(always(captured("two_predictions"))) as (predict, server):
        await predict(PredictionRequest(model, (1, 2)))

    assert server.received[0].line == f"POST {path} HTTP/1.1"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "m/2.0", "/", "a/b?c", "\ud800", "x" * 5000])
async def test_a_name_that_would_reach_another_path_is_never_asked_for(name: str) -> None:
    async with torchserve(always(ok(b"[1]"))) as (predict, server):
        with pytest.raises(ModelNotFound):
            await predict(PredictionRequest(ModelRef(name), (1,)))
        with pytest.raises(VersionNotFound):
            await predict(PredictionRequest(ModelRef("m", name), (1,)))

    assert server.received == []


async def test_what_cannot_be_written_as_json_is_the_callers_mistake() -> None:
    deep: Json = 1
    for _ in range(10_000):
        deep = [deep]

    assert isinstance(await failed(always(ok(b"[]")), PredictionRequest(MODEL, ("\ud800",))), InvalidRequest)
    assert isinstance(await failed(always(ok(b"[]")), PredictionRequest(MODEL, (deep,))), InvalidRequest)


# --- what comes back


@pytest.mark.parametrize("body", [b'{"predictions": [1, {"p": null}], "x": 1}', b' [1, {"p": null}]\n'])
async def test_predictions_come_in_an_object_or_as_a_list(body: bytes) -> None:
    assert await asked(always(ok(body))) == PredictionResult(MODEL, (1, {"p": None}))


async def test_a_refused_instance_is_refused_in_its_place() -> None:
    result = await asked(always(captured("one_refused")))

    assert result.predictions == ({"v": "1.0", "got": 1}, Refusal(422, "too long"))


@pytest.mark.parametrize(
    "prediction",
    [
        {"error": {"code": 399, "message": "x"}},
        {"error": {"code": 500, "message": "x"}},
        {"error": {"code": 422.0, "message": "x"}},
        {"error": {"code": True, "message": "x"}},
        {"error": {"code": 422, "message": None}},
        {"error": {"code": 422, "message": "x", "more": 1}},
        {"error": {"code": 422, "message": "x"}, "more": 1},
        {"error": "x"},
    ],
)
async def test_what_only_resembles_a_refusal_is_a_prediction(prediction: Json) -> None:
    body = httpx.Response(200, json=[prediction]).content

    result = await asked(always(ok(body)), PredictionRequest(MODEL, (1,)))

    assert result.predictions == (prediction,)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"error",
        b"[1]",
        b"[1, 2, 3]",
        b'{"predictions": [1]}',
        b'{"predictions": {"0": 1, "1": 2}}',
        b"12",
        b'"ab"',
        b"[1, NaN]",
        b"[1, -Infinity]",
        b"[1, 1e999]",
        b'[1, {"a": [' + b"9" * 310 + b".0]}]",
        b"[1, 2] x",
        b"\xef\xbb\xbf[1, 2]",
        b'[1, "\xff"]',
        b"[" * 5000,
    ],
)
async def test_an_answer_that_makes_no_sense_is_the_servers_fault(body: bytes) -> None:
    assert isinstance(await failed(always(ok(body))), ServerFault)


async def test_large_numbers_in_text_are_no_infinity() -> None:
    result = await asked(always(ok(b'["1e999", 1e300]')))

    assert result.predictions == ("1e999", 1e300)


async def test_an_answer_is_read_up_to_its_limit_and_no_further() -> None:
    large = ok(b'["' + b"x" * 1000 + b'"]')
    request = PredictionRequest(MODEL, (1,))
    async with serving(always(large)) as server:
        async with channel_to(server.url, max_answer_bytes=1004) as channel:
            await TorchServeClient(channel)(request)
        async with channel_to(server.url, max_answer_bytes=1003) as channel:
            with pytest.raises(ServerFault, match="larger than 1003 bytes"):
                await TorchServeClient(channel)(request)
            await server.until(lambda: server.lost == [1, 2])


# --- TorchServe's failures, byte for byte

FAULTS: list[tuple[str, type[DispatchError], str]] = [
    ("unknown_model", ModelNotFound, "no model 'm'"),
    ("unknown_version", VersionNotFound, "no version '1.0' of model 'm'"),
    ("unknown_path", ServerFault, "not that of a TorchServe inference API"),
    ("root", ServerFault, "not that of a TorchServe inference API"),
    ("refused_key", ServerFault, "wants a key"),
    ("queue_full", ServerBusy, "queue is full"),
    ("handler_raised", ServerFault, "handler failed"),
    ("handler_said_503", ServerFault, "handler failed"),
    ("out_of_memory", ServerFault, "ran out of memory"),
    ("worker_exited", ServerFault, "worker died"),
    ("worker_killed", ServerFault, "worker died"),
    ("stream_broken_off", ServerFault, "broke off"),
    ("too_large", PayloadTooLarge, "larger than the model server accepts"),
    ("invalid_http", ServerFault, "status 400"),
    ("bad_escape", ServerFault, "status 403"),
    ("handler_said_200", ServerFault, "one JSON prediction for each instance"),
    ("handler_answered_nan", ServerFault, "one JSON prediction for each instance"),
    ("handler_answered_text", ServerFault, "one JSON prediction for each instance"),
    ("handler_said_302", ServerFault, "status 302"),
    ("handler_set_0", ServerFault, "not HTTP"),
    ("handler_set_99", ServerFault, "not HTTP"),
    ("handler_set_100", ServerFault, "not HTTP"),
    ("handler_set_101", ServerFault, "not HTTP"),
    ("handler_set_204", ServerFault, "status 204"),
    ("handler_set_304", ServerFault, "status 304"),
    ("handler_set_999", ServerFault, "status 999"),
]


@pytest.mark.parametrize(("capture", "error", "words"), FAULTS)
async def test_what_torchserve_says_is_told_in_our_words(
    capture: str, error: type[DispatchError], words: str
) -> None:
    found = await failed(always(captured(capture)))

    assert type(found) is error
    assert words in str(found)
    assert not [secret for secret in ("127.0.0.1", "/secret", "good", "Exception") if secret in str(found)]


@pytest.mark.parametrize(
    ("capture", "code", "message"),
    [
        ("handler_said_400", 400, "my prediction error"),
        ("handler_said_413", 413, "my prediction error"),  # which TorchServe sends as 507
        ("handler_set_422", 422, "said by the handler"),
        ("handler_set_404", 404, "no such user"),
        ("handler_set_429", 429, "said by the handler"),
    ],
)
async def test_what_a_handler_refuses_is_passed_on_in_its_words(
    capture: str, code: int, message: str
) -> None:
    found = await failed(always(captured(capture)))

    assert isinstance(found, InputRejectedByModel)
    assert (found.code, str(found)) == (code, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"err": "custom status"}', '{"err": "custom status"}'),
        (b'{"error": "short"}', "short"),
        (b'"just text"', "just text"),
        (b"a\n  b", "a b"),
        (b"\xff", "�"),
        (b"x" * 501, "x" * 499 + "…"),
        (b'{"message": "' + b"x" * 501 + b'"}', "x" * 499 + "…"),
        (b"", "The model refused the input and does not say why."),
        (b"<html>nginx at 10.0.0.7</html>", "The model refused the input and does not say why."),
        (
            b'{"message": "Traceback (most recent call last):\\n File x"}',
            "The model refused the input and does not say why.",
        ),
    ],
)
async def test_a_handlers_words_are_short_and_fit_to_be_seen(body: bytes, message: str) -> None:
    reply = Reply(b"HTTP/1.1 422 No\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    assert str(await failed(always(reply))) == message


@pytest.mark.parametrize(
    "body",
    [
        b'{"code": 404, "type": "ModelNotFoundException", "message": "x"}',
        b'{"code": 422, "type": "ModelNotFoundException", "message": "x", "more": 1}',
        b'{"code": 422, "type": "ModelNotFoundException", "message": 1}',
        b'{"code": 422, "type": "too_long", "message": "x"}',
    ],
)
async def test_what_only_resembles_torchserves_words_is_the_handlers_own(body: bytes) -> None:
    reply = Reply(b"HTTP/1.1 422 No\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    assert type(await failed(always(reply))) is InputRejectedByModel


async def test_a_server_that_resets_the_connection_before_it_answers_is_unreachable() -> None:
    assert type(await failed(always(Reply(b"", "rst")))) is ServerUnreachable
    assert type(await failed(always(Reply(b"", "fin")))) is ServerUnreachable


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with channel_to("http://127.0.0.1:1") as channel:
        with pytest.raises(ServerUnreachable) as raised:
            await TorchServeClient(channel)(BOTH)

    assert "127.0.0.1" not in str(raised.value)


async def test_a_server_that_never_answers_is_given_the_callers_time() -> None:
    async with torchserve(never) as (predict, server):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await predict(BOTH)
        await server.until(lambda: server.lost == [1])


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1", "127.0.0.1:80", "http://[::x]", "http://xn--a", "http://" + "x" * 70_000],
)
async def test_an_address_that_is_none_is_the_servers_fault(url: str) -> None:
    with pytest.raises(ServerFault):
        Channel(url)

    async with client() as http:
        with pytest.raises(ServerFault):
            await PingProbe(http, url, [])()


def every_subclass(error: type[Exception]) -> set[type[Exception]]:
    return {error}.union(*(every_subclass(each) for each in error.__subclasses__()))


def test_every_exception_of_httpx_is_translated() -> None:
    roots = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)
    foreign = {each for root in roots for each in every_subclass(root) if each.__module__ == "httpx"}

    assert len(foreign) >= 25
    for each in foreign:
        assert isinstance(translated(each.__new__(each)), ServerError)
    assert set(FAILURES) <= {*foreign, UnicodeError}


# --- handlers that take one bare instance a request


async def sign(request: Received) -> Reply:
    return ok(b'{"of": %s}' % request.body)


async def refuse_bad(request: Received) -> Reply:
    return captured("handler_set_422") if b"bad" in request.body else await sign(request)


async def test_a_bare_handler_is_asked_for_each_instance_in_order() -> None:
    instances = tuple(range(20))
    async with torchserve(sign, bare=True) as (predict, server):
        result = await predict(PredictionRequest(MODEL, instances))

    assert result.predictions == tuple({"of": i} for i in instances)
    assert {r.line for r in server.received} == {"POST /predictions/m/1.0 HTTP/1.1"}
    assert server.connections <= 8


async def test_a_bare_handlers_refusal_is_for_that_instance_alone() -> None:
    result = await asked(refuse_bad, bare=True)

    assert result.predictions == ({"of": "good"}, Refusal(422, "said by the handler"))


async def test_a_bare_handlers_failure_fails_the_request_and_ends_the_others() -> None:
    async def fail_bad(request: Received) -> Reply:
        if b"bad" not in request.body:
            await asyncio.Event().wait()
        await server.until(lambda: len(server.received) == 2)
        return captured("handler_raised")

    async with torchserve(fail_bad, bare=True) as (predict, server):
        with pytest.raises(ServerFault):
            await predict(BOTH)
        await server.until(lambda: len(server.lost) == 2)


async def test_a_bare_handler_takes_no_parameters() -> None:
    found = await failed(sign, PredictionRequest(MODEL, (1,), parameters={"top_k": 1}), bare=True)

    assert isinstance(found, InvalidRequest)
    assert found.errors[0].pointer == "/parameters"


# --- whatever it sends


async def never(_request: Received) -> Reply:
    await asyncio.Event().wait()
    raise AssertionError


async def outcome(reply: Reply, *, bare: bool) -> None:
    with contextlib.suppress(DispatchError):
        async with asyncio.timeout(5):
            await asked(always(reply), bare=bare)


@settings(max_examples=300)
@given(
    status=st.one_of(st.integers(0, 1200).map(b"%d".__mod__), st.binary(max_size=5)),
    head=st.lists(
        st.sampled_from(
            [
                b"content-length: 5",
                b"content-length: -1",
                b"content-length: x",
                b"transfer-encoding: chunked",
                b"content-encoding: gzip",
                b"location: http://[",
                b"location: /",
                b"set-cookie: a=b",
                b"content-type: text/html; charset=nonsense",
                b"connection: upgrade",
                b"upgrade: websocket",
                b": ",
            ]
        ),
        max_size=3,
    ),
    body=st.one_of(
        st.binary(max_size=50),
        st.sampled_from([b"[1,2]", b"[]", b'{"code":404,"type":"ModelNotFoundException"}', b'{"error":1}']),
    ),
    then=st.sampled_from(["fin", "rst"]),
    bare=st.booleans(),
)
@example(status=b"200", head=[], body=b"[1,2]", then="fin", bare=False)
def test_whatever_a_server_sends_is_an_answer_or_a_dispatch_error(
    status: bytes, head: list[bytes], body: bytes, then: str, *, bare: bool
) -> None:
    data = b"HTTP/1.1 " + status + b" \r\n" + b"".join(each + b"\r\n" for each in head) + b"\r\n" + body
    reply = Reply(data, "fin" if then == "fin" else "rst")

    asyncio.run(outcome(reply, bare=bare))


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_whatever_bytes_come_are_a_dispatch_error(data: bytes) -> None:
    asyncio.run(outcome(Reply(data, "fin"), bare=False))


async def test_two_answers_to_two_requests_are_not_confused() -> None:
    async with torchserve(one_by_one(ok(b"[1,1]"), ok(b"[2,2]"))) as (predict, server):
        first, second = await predict(BOTH), await predict(BOTH)

    assert (first.predictions, second.predictions) == ((1, 1), (2, 2))
    assert server.connections == 1
