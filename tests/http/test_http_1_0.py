"""What HTTP/1.0 does not know is not said to it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.http.raw_caller import ANSWER, BODY, Caller, connected, post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import uvicorn


@pytest.fixture
async def caller(serving: uvicorn.Server) -> AsyncIterator[Caller]:
    async with connected(serving) as caller:
        yield caller


@pytest.mark.parametrize("what", ["predictions", "events"])
async def test_a_stream_is_not_chunked_and_ends_with_its_connection(
    caller: Caller, serving: uvicorn.Server, what: str
) -> None:
    async with connected(serving) as submitting:
        submitting.send(post(path="/jobs"))
        job = (await submitting.answer())[2]

    caller.send(f"GET {job['urls'][what]} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode())
    async with asyncio.timeout(5):
        head, _, body = (await caller.reader.read()).partition(b"\r\n\r\n")

    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head.lower()
    assert b"connection: close" in head.lower()
    if what == "predictions":
        assert json.loads(body) == {"prediction": "a:m/1.0:x"}
    else:
        assert body.startswith(b"retry: ")
        assert body.endswith(b"}\n\n")


async def test_nobody_is_asked_for_the_body(caller: Caller) -> None:
    request = post(BODY, "expect: 100-continue", version="1.0")
    caller.send(request[: -len(BODY)])
    await asyncio.sleep(0.05)
    caller.send(BODY)

    assert (await caller.answer())[2] == ANSWER
    assert await caller.ended()


async def test_a_length_that_is_known_is_told(caller: Caller) -> None:
    caller.send(b"HEAD /health/live HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(5):
        head = await caller.reader.read()

    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"content-length: " in head
    assert head.endswith(b"\r\n\r\n")
