"""The short way through uvicorn, on real sockets: it must not be seen from outside."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from domain.errors import DispatchError, FieldError, InputRejectedByModel
from interface.http.protocol import GatewayProtocol
from tests.http.happened import happened
from tests.http.raw_caller import ANSWER, BODY, Caller, connected, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import uvicorn
    from fastapi import FastAPI

    from tests.fakes import FakeServer


@pytest.fixture
async def caller(serving: uvicorn.Server) -> AsyncIterator[Caller]:
    async with connected(serving) as caller:
        yield caller


async def test_a_plain_post_takes_the_short_way(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HttpToolsProtocol, "on_headers_complete", _not_this_way)

    caller.send(post())

    assert (await caller.answer())[2] == ANSWER


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(BODY),
        post(BODY, path="/dispatch_model/"),
        post(BODY, path="/dispatch_model?x=1"),
        post(b"27\r\n" + BODY + b"\r\n0\r\n\r\n", "transfer-encoding: chunked"),
        post(BODY + b" " * 9_000),
    ],
)
async def test_both_ways_give_the_same_answer(caller: Caller, request_bytes: bytes) -> None:
    caller.send(request_bytes)

    status, headers, body = await caller.answer()

    assert (status, body) == (200, ANSWER)
    assert headers.keys() == {"date", "content-type", "content-length", "x-request-id", "server-timing"}
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/dispatch_model", "/dispatch_model?asgi"])
@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", [], 400),
        (b"{}", [], 422),
        (b'{"model_name": "nope", "instances": [1]}', [], 404),
        (BODY, ["x-request-timeout: soon"], 422),
        (b"[" * 20_000, [], 413),
    ],
)
async def test_both_ways_refuse_alike(
    caller: Caller, path: str, body: bytes, headers: list[str], status: int
) -> None:
    caller.send(post(body, "x-request-id: r-1", *headers, path=path))

    found, told, problem = await caller.answer()

    assert (found, problem["status"], problem["instance"]) == (status, status, "r-1")
    assert (told["content-type"], told["x-request-id"]) == ("application/problem+json", "r-1")


async def test_a_connection_serves_many_requests(caller: Caller) -> None:
    for _ in range(3):
        caller.send(post())
        assert (await caller.answer())[0] == 200


async def test_a_body_may_come_in_pieces(caller: Caller) -> None:
    request = post()
    for i in range(0, len(request), 7):
        caller.send(request[i : i + 7])
        await asyncio.sleep(0)

    assert (await caller.answer())[2] == ANSWER


async def test_pipelined_requests_are_answered_in_order(caller: Caller, server: FakeServer) -> None:
    server.seconds = 0.02
    caller.send(post() + post(b'{"model_name": "m", "instances": ["y"]}') + post(b"{"))

    answers = [await caller.answer() for _ in range(3)]

    assert [status for status, _, _ in answers] == [200, 200, 400]
    assert [body.get("predictions") for _, _, body in answers] == [["a:m/1.0:x"], ["a:m/1.0:y"], None]


@pytest.mark.parametrize("request_bytes", [post(BODY, "connection: close"), post(BODY, version="1.0")])
async def test_a_connection_that_is_not_kept_is_closed(caller: Caller, request_bytes: bytes) -> None:
    caller.send(request_bytes)

    _, headers, body = await caller.answer()

    assert (body, headers["connection"]) == (ANSWER, "close")
    assert await caller.ended()


async def test_a_caller_who_leaves_cancels_what_nobody_else_waits_for(
    caller: Caller, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.seconds = 60.0
    caller.send(post())
    await happened(lambda: server.asked)

    with caplog.at_level(logging.INFO, "dispatcher.access"):
        caller.writer.close()
        await happened(lambda: caplog.records)

    assert server.cancelled == 1
    assert [record.__dict__["fields"]["status"] for record in caplog.records] == [499]


async def test_a_body_that_does_not_come_is_not_waited_for(caller: Caller) -> None:
    caller.send(post(BODY, "x-request-timeout: 0.05")[:-1])

    status, headers, problem = await caller.answer()

    assert (status, problem["type"], headers["connection"]) == (504, "/problems/deadline-exceeded", "close")
    assert await caller.ended()


async def test_a_body_that_ends_as_it_is_given_up_is_not_answered_twice(
    serving: uvicorn.Server, caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatcher.access")
    request = post(b"this is not JSON, and needs no model to be refused")
    caller.send(request[:-5])
    await happened(lambda: serving.server_state.connections)
    (protocol,) = serving.server_state.connections
    assert isinstance(protocol, GatewayProtocol)
    await happened(lambda: protocol._short is not None and protocol._short.body)

    assert protocol._short is not None
    protocol._short._give_up()
    protocol.data_received(request[-5:])  # in the same turn of the loop

    assert (await caller.answer())[0] == 504
    assert await caller.ended()
    assert [each.fields["status"] for each in caplog.records if each.message == "request"] == [504]  # type: ignore[attr-defined]


async def test_a_connection_is_closed_when_it_has_been_idle_for_long(
    serving: uvicorn.Server, server: FakeServer
) -> None:
    serving.config.timeout_keep_alive = 0.2  # type: ignore[assignment]
    server.seconds = 0.15
    async with connected(serving) as caller:
        for _ in range(3):  # 0.45 s, but never idle
            caller.send(post())
            assert (await caller.answer())[0] == 200

        begun = asyncio.get_running_loop().time()
        assert await caller.ended()

    assert 0.1 < asyncio.get_running_loop().time() - begun < 2.0


async def test_who_waits_to_be_asked_for_the_body_is_asked(caller: Caller) -> None:
    request = post(BODY, "expect: 100-continue")
    caller.send(request[: -len(BODY)])

    async with asyncio.timeout(5):
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    caller.send(BODY)
    assert (await caller.answer())[2] == ANSWER


async def test_our_own_mistake_is_a_problem_and_is_logged(
    caller: Caller, app: FastAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(type(app.state.gateway.predictions), "predict", _broken)
    caller.send(post())

    status, _, problem = await caller.answer()

    assert (status, problem["type"]) == (500, "/problems/internal-error")
    assert "a secret" not in json.dumps(problem)
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("path", ["/dispatch_model", "/dispatch_model?asgi"])
@pytest.mark.parametrize("method", ["recall", "predict"])
async def test_an_error_that_cannot_be_told_is_our_own_mistake(
    caller: Caller, app: FastAPI, monkeypatch: pytest.MonkeyPatch, path: str, method: str
) -> None:
    def fail(_service: object, _request: object) -> None:
        raise DispatchError  # which has no status: only its kinds have

    monkeypatch.setattr(type(app.state.gateway.predictions), method, fail)
    caller.send(post(path=path))

    status, _, problem = await caller.answer()

    assert (status, problem["type"]) == (500, "/problems/internal-error")


@pytest.mark.parametrize("path", ["/dispatch_model", "/dispatch_model?asgi"])
@pytest.mark.parametrize("error", [InputRejectedByModel("no", code=999), asyncio.CancelledError()])
async def test_whoever_cannot_be_answered_is_not_left_waiting(
    caller: Caller, app: FastAPI, monkeypatch: pytest.MonkeyPatch, path: str, error: BaseException
) -> None:
    async def fail(_service: object, _request: object) -> None:
        raise error

    monkeypatch.setattr(type(app.state.gateway.predictions), "predict", fail)
    caller.send(post(BODY, "connection: close", path=path))

    async with asyncio.timeout(5):
        assert b"200 OK" not in await caller.reader.read()


@pytest.mark.parametrize("path", ["/dispatch_model", "/dispatch_model?asgi"])
async def test_half_a_character_of_a_model_spoils_no_answer(
    caller: Caller, server: FakeServer, path: str
) -> None:
    server.name = "\ud83d"
    caller.send(post(path=path))
    assert (await caller.answer())[2]["predictions"] == ["\ud83d:m/1.0:x"]

    server.error = InputRejectedByModel("half: \ud83d", errors=[FieldError("/\ud83d", "\ud83d")])
    caller.send(post(path=path))
    status, _, problem = await caller.answer()
    assert (status, problem["detail"]) == (422, "half: ?")
    assert problem["errors"] == [{"detail": "?", "pointer": "#/%3F"}]


async def test_a_request_in_flight_is_answered_before_the_gateway_stops(
    serving: uvicorn.Server, server: FakeServer
) -> None:
    server.seconds = 0.3
    async with connected(serving) as caller:
        caller.send(post())
        await happened(lambda: server.asked)
        serving.should_exit = True

        status, headers, _ = await caller.answer()

    assert (status, headers["connection"]) == (200, "close")


def _not_this_way(_protocol: object) -> None:
    pytest.fail("this request went uvicorn's way")


async def _broken(_service: object, _request: object) -> None:
    raise RuntimeError("a secret")
