"""Requests that wait for their turn take little memory, however many of them are sent."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from interface.http.protocol import PIECE, GatewayProtocol
from tests.http.happened import happened
from tests.http.raw_caller import ANSWER, BODY, Caller, connected, post

if TYPE_CHECKING:
    import uvicorn

    from tests.fakes import FakeServer

GET = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
MOST = PIECE // len(GET) + 1  # those of one piece
READ = 262_144  # bytes at most that a loop reads at once


async def test_who_sends_requests_and_reads_no_answers_is_not_read_on(serving: uvicorn.Server) -> None:
    async with connected(serving) as caller:
        protocol = await _protocol(serving)
        _with_small_buffers(protocol, caller)
        for _ in range(20):
            caller.send(GET * 25_000)
        try:
            await happened(lambda: protocol.flow.write_paused)
            await asyncio.sleep(0.3)

            assert len(protocol.pipeline) <= MOST
            assert len(protocol._held) <= READ
            assert protocol.flow.read_paused
        finally:
            caller.writer.transport.abort()
        await happened(lambda: not serving.server_state.connections)


async def test_all_of_many_are_answered_in_the_end(serving: uvicorn.Server) -> None:
    longest = 0
    async with connected(serving) as caller:
        caller.send(GET * 1_500 + post() + b"GET /last HTTP/1.1\r\nHost: gateway\r\n\r\n")
        protocol = await _protocol(serving)

        for _ in range(1_500):
            assert (await caller.answer())[0] == 200
            longest = max(longest, len(protocol.pipeline))
        assert (await caller.answer())[2] == ANSWER
        assert (await caller.answer())[0] == 404
    assert 0 < longest <= MOST


async def test_a_body_that_comes_in_many_pieces_behind_others_is_whole(
    serving: uvicorn.Server, server: FakeServer
) -> None:
    server.seconds = 0.05
    lines = b"".join(b'"%d"\n' % i for i in range(1_000)) + b" \n" * 100_000
    bulk = post(lines, "content-type: application/x-ndjson", path="/jobs?model_name=m")
    async with connected(serving) as caller:
        caller.send(post(BODY) + bulk + post(b"{"))

        answers = [await caller.answer() for _ in range(3)]

    assert [status for status, _, _ in answers] == [200, 202, 400]
    assert answers[1][2]["progress"]["total"] == 1_000


def _with_small_buffers(protocol: GatewayProtocol, caller: Caller) -> None:
    """The system's own take megabytes of answers before anybody notices that they are not read."""
    caller.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it has a socket
    protocol.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)


async def _protocol(serving: uvicorn.Server) -> GatewayProtocol:
    await happened(lambda: serving.server_state.connections)
    (protocol,) = serving.server_state.connections
    assert isinstance(protocol, GatewayProtocol)
    return protocol
