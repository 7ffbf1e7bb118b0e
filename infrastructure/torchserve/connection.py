"""One HTTP connection that carries predictions, and the one exchange that is under way on it."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, TypeAlias, cast

import httptools

from domain.errors import ServerError, ServerFault
from infrastructure.torchserve.exchange import BROKE_OFF, NOT_HTTP, Answer

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEAD_BYTES = 64 * 1024
FIRST_FINAL_STATUS = 200  # below it an answer is informational

_DELIMITED = re.compile(rb"\r\n(?:content-length|transfer-encoding)[ \t]*:", re.IGNORECASE)


class Stale:
    """The connection was closed before a byte of the answer came: stale, where it had answered before."""


STALE = Stale()

Outcome: TypeAlias = Answer | ServerError | Stale
"""What became of an exchange; a result of its future, as an exception nobody fetched would be logged."""


class Connection(asyncio.Protocol):
    """A connection that says when it is free again (`keep`) and when it is gone (`forget`).

    An answer is complete as RFC 9112, 6.3 says. An informational one (1xx) is an error: we never ask for
    one, and TorchServe lets nothing follow where a handler sets such a status.
    """

    def __init__(
        self,
        keep: Callable[[Connection], None],
        forget: Callable[[Connection], None],
        max_answer_bytes: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.used = True  # since whoever keeps it looked last
        self._keep = keep
        self._forget = forget
        self._max_answer_bytes = max_answer_bytes
        self._loop = loop
        self._new_future: Callable[[], asyncio.Future[Outcome]] = loop.create_future
        self._parser = httptools.HttpResponseParser(self)
        self._pending: asyncio.Future[Outcome] | None = None
        self._begun = False  # the present answer, and what is known of it:
        self._status = 0
        self._head = b""
        self._body: bytes | bytearray = b""

    async def ask(self, message: bytes) -> Outcome:
        """What became of `message`, a whole request. A caller who leaves meanwhile ends the connection."""
        self._pending = pending = self._new_future()
        self._loop.call_soon(self._write, message)  # with all others of this turn: one write wakes the server
        try:
            return await pending
        finally:
            if self._pending is pending:  # the answer would be taken for the next one's
                self.close()

    def close(self, outcome: Outcome | None = None) -> None:
        """End the connection at once, and with it the exchange that is under way, if any."""
        pending, self._pending = self._pending, None
        if outcome is not None and pending is not None and not pending.done():
            pending.set_result(outcome)
        self._forget(self)
        self._transport.abort()

    def _write(self, message: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(message)

    # --- what the event loop says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        if self._pending is None:
            self.close()  # nobody asked: whatever it is, it is not the next answer
            return
        in_head = not self._status
        self._begun = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.close(ServerFault(NOT_HTTP))
            return
        if in_head and self._pending is not None:
            self._head += data
            if not self._status and len(self._head) > MAX_HEAD_BYTES:
                self.close(ServerFault(NOT_HTTP))

    def eof_received(self) -> None:
        if self._pending is None:
            self.close()
        elif self._ends_with_the_connection():
            self.close(self._answer())

    def connection_lost(self, _error: Exception | None) -> None:
        self.lost.set_result(None)
        self.close(ServerFault(BROKE_OFF) if self._begun else STALE)

    # --- what the parser says

    def on_message_begin(self) -> None:
        if self._pending is None:
            self.close()  # a second answer behind the first

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._status < FIRST_FINAL_STATUS:
            self.close(ServerFault(NOT_HTTP))

    def on_body(self, part: bytes) -> None:
        if self._body:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)  # grows without being copied each time
            self._body += part
        else:
            self._body = part
        if len(self._body) > self._max_answer_bytes:
            message = f"The model server's answer is larger than {self._max_answer_bytes} bytes."
            self.close(ServerFault(message))

    def on_message_complete(self) -> None:
        pending = self._pending
        if pending is None:
            return
        if not self._parser.should_keep_alive() or self._transport.get_write_buffer_size():
            self.close(self._answer())
            return
        self._pending = None
        if not pending.done():
            pending.set_result(self._answer())
        self.used = True
        self._begun = False
        self._status = 0
        self._head = self._body = b""
        self._keep(self)

    def _answer(self) -> Answer:
        return Answer(self._status, bytes(self._body))

    def _ends_with_the_connection(self) -> bool:
        if not self._status:
            return False
        head = self._head.lstrip(b"\r\n").partition(b"\r\n\r\n")[0]
        return _DELIMITED.search(head) is None
