"""Requests that cannot be read are told so as a problem, and nothing behind them is read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from interface.http.protocol import MOST_HEAD_BYTES
from tests.http.raw_caller import ANSWER, BODY, Caller, connected, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import uvicorn

    from tests.fakes import FakeServer

LONG = b"x" * (1 << 20)
HOST = b"Host: gateway\r\n"
CHUNKED = b"POST /dispatch_model HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def caller(serving: uvicorn.Server) -> AsyncIterator[Caller]:
    async with connected(serving) as caller:
        yield caller


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),  # TLS
        (b"GET /\xff HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\n\r\n", 400),
        (b"GET /health/live HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"POST /dispatch_model HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY), 400),
        (post(BODY, "Host: other"), 400),
        (b"GET /health/live HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (CHUNKED.replace(b"chunked", b"gzip, chunked"), 501),
        (CHUNKED.replace(b"chunked", b"gzip"), 501),
        (CHUNKED.replace(b"chunked", b"gzip\r\nTransfer-Encoding: chunked"), 501),
        (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
        (CHUNKED.replace(b"chunked", b"chunked\r\nContent-Length: 3"), 400),
        (CHUNKED + b"not a length\r\n", 400),
        (b"GET /" + LONG, 431),
        (b"GET / HTTP/1.1\r\nX: " + LONG, 431),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000, 431),
        (CHUNKED + b"0\r\nX: " + LONG, 431),
    ],
)
async def test_a_request_that_cannot_be_read_is_told_why(
    caller: Caller, request_bytes: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatcher.access")
    caller.send(request_bytes)

    found, headers, problem = await caller.answer()

    assert (found, problem["status"], problem["instance"]) == (status, status, headers["x-request-id"])
    assert (headers["content-type"], headers["connection"]) == ("application/problem+json", "close")
    caller.send(post())
    assert await caller.ended()
    assert status in [each.fields["status"] for each in caplog.records if each.message == "request"]  # type: ignore[attr-defined]


async def test_it_is_told_after_all_that_was_asked_before(caller: Caller, server: FakeServer) -> None:
    server.seconds = 0.05
    caller.send(post() + post() + b"nonsense\r\n\r\n" + post())

    answers = [await caller.answer() for _ in range(3)]

    assert [status for status, _, _ in answers] == [200, 200, 400]
    assert await caller.ended()


async def test_a_body_that_breaks_off_behind_others_is_told_in_its_place(
    caller: Caller, server: FakeServer
) -> None:
    server.seconds = 0.05
    caller.send(post() + CHUNKED + b"not a length\r\n")

    answers = [await caller.answer() for _ in range(2)]

    assert [status for status, _, _ in answers] == [200, 400]
    assert await caller.ended()


async def test_what_was_answered_is_not_answered_again_where_its_body_breaks_off(caller: Caller) -> None:
    caller.send(CHUNKED.replace(b"/dispatch_model", b"/nothing"))
    assert (await caller.answer())[0] == 404

    caller.send(b"not a length\r\n")

    assert await caller.ended()


async def test_a_body_does_not_count_as_headers(caller: Caller) -> None:
    body = BODY + b" " * 9_000
    caller.send(b"".join(post(body, f"x: {'y' * 5_000}") for _ in range(30)))

    for _ in range(30):
        assert (await caller.answer())[2] == ANSWER


@pytest.mark.parametrize("path", ["/dispatch_model", "/dispatch_model?asgi"])
async def test_headers_may_be_as_large_as_is_promised(caller: Caller, path: str) -> None:
    caller.send(post(b"{" + b" " * 9_000))
    rest = post(BODY, f"x: {'y' * (MOST_HEAD_BYTES - 200)}", path=path)
    for i in range(0, len(rest), 1_000):
        caller.send(rest[i : i + 1_000])

    assert (await caller.answer())[0] == 400
    assert (await caller.answer())[2] == ANSWER


async def test_chunks_and_small_trailers_are_read(caller: Caller) -> None:
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * 9_000)
    for _ in range(2):
        caller.send(CHUNKED + chunks + b"0\r\nContent-Type: a trailer\r\n\r\n")

        assert (await caller.answer())[2] == ANSWER


async def test_an_empty_host_is_a_host(caller: Caller) -> None:
    caller.send(b"GET /health/live HTTP/1.1\r\nHost:\r\n\r\n")

    assert (await caller.answer())[0] == 200
