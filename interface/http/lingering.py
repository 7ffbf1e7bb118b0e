"""Closing a connection on which a body still arrives, so that its caller sees the answer.

Were it closed at once, the system would meet what comes with a reset, and that may take from the caller
an answer which it has not read yet (RFC 9112, 9.6).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

LINGER = 30.0  # seconds in which the rest of a body that nobody wants may come; nginx's lingering_time
MOST_BYTES = 1 << 30  # of that rest


class Cycle(Protocol):
    """One request on a connection, as uvicorn's RequestResponseCycle keeps it."""

    more_body: bool
    response_complete: bool


def close(transport: asyncio.Transport, cycle: Cycle | None) -> None:
    """Close the connection; not before the caller where it was answered and its body has not ended.

    Then the connection lingers.
    """
    if cycle is not None and cycle.response_complete and cycle.more_body:
        linger(transport)
    else:
        transport.close()


def linger(transport: asyncio.Transport) -> None:
    """Send nothing more, and discard what comes: for LINGER seconds, and up to MOST_BYTES."""
    if not transport.is_closing():
        transport.set_protocol(_Discarding(transport))
        if transport.can_write_eof():  # not over TLS
            transport.write_eof()


class LingeringTransport(asyncio.Transport):
    """The connection as uvicorn's cycle of one request uses it."""

    def __init__(self, inner: asyncio.Transport, cycle: Cycle) -> None:
        self._inner = inner
        self._cycle = cycle

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._inner.is_closing():  # of requests that wait, uvicorn tells the last that its caller left
            self._inner.write(data)

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def close(self) -> None:
        close(self._inner, self._cycle)


class _Discarding(asyncio.Protocol):
    """Stands in for the connection's own protocol, which hears of nothing but its end."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._own = transport.get_protocol()
        self._left = MOST_BYTES
        self._end = asyncio.get_running_loop().call_later(LINGER, transport.close)

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end.cancel()
        self._own.connection_lost(exc)
