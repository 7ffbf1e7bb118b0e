"""An answer that comes while the body is still being sent reaches its caller, on real sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from interface.http import lingering
from tests.http.happened import happened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx
    import uvicorn

PIECE = b" " * (1 << 20)
PIECES = 64


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(PIECES):
        yield PIECE


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_is_refused_while_it_is_sent(
    caller: httpx.AsyncClient, *, announced: bool
) -> None:
    headers = {"content-length": str(PIECES * len(PIECE))} if announced else {}

    answer = await caller.post("/dispatch_model", content=pieces(), headers=headers)

    assert (answer.status_code, answer.headers["connection"]) == (413, "close")
    assert answer.json()["type"] == "/problems/payload-too-large"


async def test_who_reads_only_after_sending_everything_sees_the_answer(serving: uvicorn.Server) -> None:
    reader, writer = await _begun(serving)
    for _ in range(PIECES):
        writer.write(PIECE)
        await writer.drain()

    async with asyncio.timeout(5):
        text = await reader.read()

    assert text.startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_nothing_more_is_sent_after_the_answer(serving: uvicorn.Server) -> None:
    serving.config.timeout_keep_alive = 0.05  # type: ignore[assignment]
    reader, writer = await _begun(serving)

    async with asyncio.timeout(5):
        assert (await reader.read()).startswith(b"HTTP/1.1 413 ")  # up to its end

    await asyncio.sleep(0.2)
    assert serving.server_state.connections  # which still takes what we send
    writer.close()
    await happened(lambda: not serving.server_state.connections)


async def test_a_caller_who_goes_on_sending_is_cut_off(
    serving: uvicorn.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "MOST_BYTES", 5 << 20)
    _, writer = await _begun(serving)

    with pytest.raises(ConnectionError):  # noqa: PT012  (any of them may meet it)
        for _ in range(PIECES):
            writer.write(PIECE)
            await writer.drain()
            await asyncio.sleep(0)
    writer.close()


async def test_a_caller_who_neither_sends_nor_leaves_is_left(
    serving: uvicorn.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lingering, "LINGER", 0.1)
    reader, writer = await _begun(serving)

    async with asyncio.timeout(5):
        await reader.read()
    await happened(lambda: not serving.server_state.connections)
    writer.close()


async def test_a_gateway_that_stops_waits_for_no_such_caller(serving: uvicorn.Server) -> None:
    reader, writer = await _begun(serving)
    async with asyncio.timeout(5):
        await reader.read()
        serving.should_exit = True
        await happened(lambda: not serving.server_state.connections)
    writer.close()


async def test_who_still_sends_what_was_answered_long_ago_is_not_reset(serving: uvicorn.Server) -> None:
    serving.config.timeout_keep_alive = 0.1  # type: ignore[assignment]
    reader, writer = await _begun(serving, path=b"/nothing")

    async with asyncio.timeout(5):
        answer = await reader.read()

    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"connection: close" not in answer
    assert serving.server_state.connections
    writer.close()


async def _begun(
    server: uvicorn.Server, path: bytes = b"/dispatch_model"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection on which a body of PIECES begins, which is too large."""
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    reader, writer = await asyncio.open_connection(host, port)
    head = b"POST %b HTTP/1.1\r\nhost: gateway\r\ncontent-length: %d\r\n\r\n"
    writer.write(head % (path, PIECES * len(PIECE)))
    return reader, writer
