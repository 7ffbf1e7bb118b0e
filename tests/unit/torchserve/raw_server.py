"""A TCP server that answers with exactly the bytes it is told to, and closes as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import httpx

from infrastructure.torchserve.channel import MAX_ANSWER_BYTES, Channel
from infrastructure.torchserve.http_client import http_client

if TYPE_CHECKING:
    from domain.prediction import Json

CAPTURES = Path(__file__).parent / "captures"
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time: close() sends RST, as TorchServe's does
TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # unused, and quicker to make than the default


@dataclass(frozen=True)
class Received:
    """A request as it came: its first line, its headers in order, and on which connection."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Json:
        value: Json = json.loads(self.body)
        return value


@dataclass(frozen=True)
class Reply:
    """Bytes, and what becomes of the connection after them; sent as they are, or `split` before that byte."""

    data: bytes
    then: Literal["keep", "fin", "rst"] = "keep"
    split: int | None = None


Answer: TypeAlias = Callable[[Received], Awaitable[Reply]]


@dataclass
class RawServer:
    """Asks `answer` for the reply to each request; `lost` holds the connections that clients closed."""

    answer: Answer
    url: str = ""
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    lost: list[int] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._converse(reader, writer, number)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await self._note(lambda: self.lost.append(number))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once `condition` holds, which is looked at whenever something happened here."""
        async with asyncio.timeout(5), self.changed:
            await self.changed.wait_for(condition)

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> None:
        while True:
            request = await _received(reader, number)
            await self._note(lambda request=request: self.received.append(request))  # type: ignore[misc]
            reply = await _unless_gone(self.answer(request), reader)
            if reply is None:
                return
            for part in _parts(reply):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if reply.then == "rst":
                _reset_on_close(writer)
            if reply.then != "keep":
                return

    async def _note(self, change: Callable[[], None]) -> None:
        async with self.changed:
            change()
            self.changed.notify_all()


@contextlib.asynccontextmanager
async def serving(answer: Answer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[RawServer]:
    raw = RawServer(answer)
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        tasks.append(asyncio.create_task(raw.serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    raw.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield raw
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.transport.abort()
        await server.wait_closed()


def _parts(reply: Reply) -> list[bytes]:
    return [
        part
        for part in (reply.data[: reply.split], reply.data[reply.split :] if reply.split else b"")
        if part
    ]


def always(reply: Reply) -> Answer:
    async def answer(_request: Received) -> Reply:
        return reply

    return answer


def one_by_one(*replies: Reply) -> Answer:
    left = list(replies)

    async def answer(_request: Received) -> Reply:
        return left.pop(0)

    return answer


def captured(name: str) -> Reply:
    """What TorchServe 0.12.0 sent; it reset the connection where it says close, or broke off."""
    data = (CAPTURES / f"{name}.http").read_bytes()
    reset = b"\r\nconnection: close\r\n" in data or name == "stream_broken_off"
    return Reply(data, "rst" if reset else "keep")


def ok(body: bytes) -> Reply:
    return Reply(
        b"HTTP/1.1 200 \r\ncontent-length: %d\r\nconnection: keep-alive\r\n\r\n%s" % (len(body), body)
    )


def client(seconds: float = 5.0) -> httpx.AsyncClient:
    return http_client(timeout=httpx.Timeout(seconds), tls=TLS)


def channel_to(url: str, *, max_answer_bytes: int = MAX_ANSWER_BYTES) -> contextlib.aclosing[Channel]:
    return contextlib.aclosing(Channel(url, max_answer_bytes=max_answer_bytes, tls=TLS))


async def _received(reader: asyncio.StreamReader, number: int) -> Received:
    head = await reader.readuntil(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")[:-2]
    headers = dict(each.split(": ", 1) for each in lines)
    length = next((int(value) for name, value in headers.items() if name.lower() == "content-length"), 0)
    return Received(line, headers, await reader.readexactly(length), number)


async def _unless_gone(reply: Awaitable[Reply], reader: asyncio.StreamReader) -> Reply | None:
    """The reply, or None as soon as the client closes the connection."""
    answering = asyncio.ensure_future(reply)
    gone = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
        return answering.result() if answering.done() else None
    finally:
        answering.cancel()
        gone.cancel()
        await asyncio.gather(answering, gone, return_exceptions=True)


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
