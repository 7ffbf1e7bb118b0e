"""The connections that carry predictions to one server: httptools on asyncio's transports, and a pool."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING

import httpx

from domain.errors import ServerError, ServerUnreachable
from infrastructure.torchserve.connection import STALE, Connection
from infrastructure.torchserve.exchange import (
    CLOSED_BEFORE,
    MEBIBYTE,
    NOT_ACCEPTED,
    NOT_REACHED,
    Answer,
    translated,
)

if TYPE_CHECKING:
    from infrastructure.torchserve.connection import Outcome

MAX_CONNECTIONS = 256
CONNECT_TIMEOUT = 2.0  # seconds; a server on the same network answers in milliseconds
KEEPALIVE = 60.0  # seconds; TorchServe itself never closes an idle connection
MAX_ANSWER_BYTES = 64 * MEBIBYTE
PORTS = {"http": 80, "https": 443}
HEADS = 256  # prebuilt, one for each path and key

_VISIBLE = re.compile(r"[!-~]+")  # no space, no line break: nothing that could end a header


class Channel:
    """Posts JSON to one server, over HTTP/1.1 connections that are kept while they are used.

    It opens `max_connections` at most; who comes when all are busy waits in turn. Connecting (with the name's
    look-up and TLS) takes `connect_timeout` seconds at most; an answer takes as long as the caller waits,
    who ends the exchange, and its connection, by leaving. A connection that nobody needs for `keepalive`
    seconds is closed. `tls` is for https; None is the platform's default.

    No proxy of the environment is used, no redirect followed, no cookie kept.
    Raises ServerFault where `url` is not the address of an HTTP server.
    """

    def __init__(
        self,
        url: str,
        *,
        max_connections: int = MAX_CONNECTIONS,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        connect_timeout: float = CONNECT_TIMEOUT,
        keepalive: float = KEEPALIVE,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        address = _address(url)
        self._host = address.raw_host.decode("ascii")
        self._port = address.port or PORTS[address.scheme]
        self._authority = address.netloc.decode("ascii")
        self._prefix = address.raw_path.decode("ascii").rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if address.scheme == "https" else None
        self._max_connections = max_connections
        self._max_answer_bytes = max_answer_bytes
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._head = lru_cache(HEADS)(self._built_head)
        self._busy = 0  # exchanges; each holds at most one connection, so this bounds them too
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle: list[Connection] = []  # last in, first out: what is not needed grows old and is closed
        self._open: set[Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None
        self._closed = False

    async def post(self, path: str, content: bytes, key: str | None = None) -> Answer:
        """The complete answer of any status to `content`, sent with `key` as the bearer token.

        A request that meets a connection its server closed while it was idle is sent again: at once, on a
        new connection, once, and only where no byte of an answer came (RFC 9112, 9.3.1).

        Raises ServerUnreachable where no answer began, ServerFault where it is not one or broke off, and
        ValueError where `path` or `key` could not be part of a header.
        """
        message = b"%b%d\r\n\r\n%b" % (self._head(path, key), len(content), content)
        if self._busy < self._max_connections:
            self._busy += 1
        else:
            await self._turn()
        try:
            outcome: Outcome = await self._idle.pop().ask(message) if self._idle else STALE
            if outcome is STALE:
                outcome = await (await self._connected()).ask(message)
        finally:
            self._leave()
        if not isinstance(outcome, Answer):
            raise outcome if isinstance(outcome, ServerError) else ServerUnreachable(CLOSED_BEFORE)
        return outcome

    async def aclose(self) -> None:
        """Close all connections; what is under way on them fails with ServerUnreachable."""
        self._closed = True
        if self._sweeping is not None:
            self._sweeping.cancel()
        connections = tuple(self._open)
        for connection in connections:
            connection.close(ServerUnreachable(CLOSED_BEFORE))
        await asyncio.gather(*(connection.lost for connection in connections))

    async def _turn(self) -> None:
        """Wait for the place of one who leaves, in order."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came at the moment its owner left
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._busy -= 1

    async def _connected(self) -> Connection:
        for connection in tuple(self._idle):  # if any: older than the stale one, so as stale
            connection.close()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await loop.create_connection(
                    self._new_connection, self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise ServerUnreachable(NOT_ACCEPTED) from error
        except OSError as error:
            raise ServerUnreachable(NOT_REACHED) from error
        if connection.lost.done():
            raise ServerUnreachable(CLOSED_BEFORE)
        self._open.add(connection)
        if self._sweeping is None:
            self._sweeping = loop.call_later(self._keepalive / 2, self._sweep)
        return connection

    def _new_connection(self) -> Connection:
        return Connection(self._keep, self._forget, self._max_answer_bytes)

    def _keep(self, connection: Connection) -> None:
        if self._closed:
            connection.close()
        else:
            self._idle.append(connection)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        """Close what was not used since the last time: one timer, and no clock for each request."""
        for connection in tuple(self._idle):
            if connection.used:
                connection.used = False
            else:
                connection.close()
        again = (
            asyncio.get_running_loop().call_later(self._keepalive / 2, self._sweep) if self._open else None
        )
        self._sweeping = again

    def _built_head(self, path: str, key: str | None) -> bytes:
        """All of a request's head but the length of its content. TorchServe minds the case of two values."""
        for each in (path, key):
            if each is not None and not _VISIBLE.fullmatch(each):
                raise ValueError("not fit for a header")
        bearer = "" if key is None else f"authorization: Bearer {key}\r\n"
        return (
            f"POST {self._prefix}{path} HTTP/1.1\r\nhost: {self._authority}\r\n"
            f"content-type: application/json\r\n{bearer}content-length: "
        ).encode("ascii")


def _address(url: str) -> httpx.URL:
    try:
        address = httpx.URL(url)
        named = address.host  # decodes it, which is when a bad one shows
    except (httpx.InvalidURL, UnicodeError) as error:
        raise translated(error) from error
    if address.scheme not in PORTS or not named:
        raise translated(httpx.UnsupportedProtocol(""))
    return address
