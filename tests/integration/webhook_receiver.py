"""A server that webhooks are sent to, and a network in which its name leads wherever a test wants."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

import httpcore

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Iterable

OLD = "whsec_" + base64.b64encode(b"o" * 32).decode()
NEW = "whsec_" + base64.b64encode(b"n" * 32).decode()
LOOPBACK = frozenset({ip_network("127.0.0.0/8")})
PUBLIC = "93.184.216.34"


@dataclass
class Received:
    """One request as it came."""

    head: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """An HTTP server that answers one request by `answers`, the next by the next, all others by the last."""

    answers: list[bytes] = field(default_factory=lambda: [answer("204 No Content")])
    drips: bool = False
    received: list[Received] = field(default_factory=list)
    connections: list[asyncio.Task[None]] = field(default_factory=list)
    port: int = 0

    @contextlib.asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for each in self.connections:
                each.cancel()
            await asyncio.gather(*self.connections, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer_all(reader, writer)
        finally:
            writer.transport.abort()

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                body = await reader.readexactly(int(headers["content-length"]))
                self.received.append(Received(head, headers, body))
                writer.write(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
                await writer.drain()
                while self.drips:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.05)


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = (f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass
class Resolver:
    """Answers with `answers` one after the other, the last for ever."""

    answers: list[list[str]]
    asked: int = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        await asyncio.sleep(0)
        self.asked += 1
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not found:
            raise OSError(host, port)
        return found


@dataclass
class World(httpcore.AsyncNetworkBackend):
    """All addresses lead to `port` on this machine, but `dead` ones, which say so, and `silent` ones."""

    port: int = 0
    dead: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    dialed: list[tuple[str, int]] = field(default_factory=list)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        ip_address(host)  # never a name
        self.dialed.append((host, port))
        if host in self.dead:
            raise httpcore.ConnectError
        if host in self.silent:
            await asyncio.sleep(60.0 if timeout is None else timeout)
            raise httpcore.ConnectTimeout
        network = httpcore.AnyIOBackend()
        return await network.connect_tcp("127.0.0.1", self.port, timeout, local_address, socket_options)
