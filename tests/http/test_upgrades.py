"""Callers who ask for another protocol get HTTP/1.1, and no byte of a body is ever a request."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from tests.http.raw_caller import ANSWER, BODY, Caller, connected, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import uvicorn

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAA")
WEBSOCKET = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
SMUGGLED = b"DELETE /jobs/0 HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.fixture
async def caller(serving: uvicorn.Server) -> AsyncIterator[Caller]:
    async with connected(serving) as caller:
        yield caller


@pytest.mark.parametrize("headers", [H2C, WEBSOCKET])
async def test_a_post_that_asks_for_another_protocol_is_answered(
    caller: Caller, headers: tuple[str, ...]
) -> None:
    for _ in range(2):  # and the connection goes on
        caller.send(post(BODY, *headers))

        status, _, body = await caller.answer()

        assert (status, body) == (200, ANSWER)


async def test_the_body_may_come_later_and_in_pieces(caller: Caller) -> None:
    request = post(BODY, *H2C)
    for i in range(0, len(request), 11):
        caller.send(request[i : i + 11])
        await asyncio.sleep(0.001)

    assert (await caller.answer())[2] == ANSWER


async def test_the_body_may_be_chunked(caller: Caller) -> None:
    caller.send(post(b"27\r\n" + BODY + b"\r\n0\r\n\r\n", "transfer-encoding: chunked", *H2C))

    assert (await caller.answer())[2] == ANSWER


async def test_who_waits_to_be_asked_for_the_body_is_asked(caller: Caller) -> None:
    request = post(BODY, "expect: 100-continue", *H2C)
    caller.send(request[: -len(BODY)])

    async with asyncio.timeout(5):
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    caller.send(BODY)
    assert (await caller.answer())[2] == ANSWER


async def test_pipelined_requests_that_ask_for_it_are_answered_in_order(caller: Caller) -> None:
    caller.send(post(BODY, *H2C) + post(b"{", *WEBSOCKET) + post(BODY))

    assert [(await caller.answer())[0] for _ in range(3)] == [200, 400, 200]


async def test_a_body_that_looks_like_a_request_is_none(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatcher.access")
    request = post(SMUGGLED, *H2C)
    caller.send(request[: -len(SMUGGLED)])
    await asyncio.sleep(0.1)
    caller.send(SMUGGLED)

    assert (await caller.answer())[0] == 400  # it is not JSON
    caller.send(post())
    assert (await caller.answer())[2] == ANSWER
    assert [each.fields["method"] for each in caplog.records if each.message == "request"] == ["POST", "POST"]  # type: ignore[attr-defined]


async def test_what_follows_connect_is_no_request(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dispatcher.access")
    caller.send(b"CONNECT other:80 HTTP/1.1\r\nHost: other:80\r\n\r\n" + SMUGGLED)

    status, headers, problem = await caller.answer()

    assert (status, problem["status"], headers["connection"]) == (501, 501, "close")
    caller.send(SMUGGLED)
    assert await caller.ended()
    assert len([each for each in caplog.records if each.message == "request"]) == 1
