"""A short way through uvicorn for the routes that carry the load."""

from __future__ import annotations

from http import HTTPMethod, HTTPStatus
from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from interface.http import dispatch, jobs, lingering, predict
from interface.http.refusal import Refused, check_head, reason, refuse
from interface.http.short_way import ShortCycle
from interface.http.unchunked import unchunk

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping, Sized

    from interface.http.preferences import Headers
    from interface.http.short_way import Endpoint

POST = HTTPMethod.POST.value.encode()
EXTRAORDINARY = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}
MOST_HEAD_BYTES = 65_536  # from a request's first byte to the end of its headers; as much as uvicorn's h11
HEAD_PATIENCE = 60.0  # seconds in which it has to be there; nginx's client_header_timeout
PIECE = 16_384  # bytes that are parsed at a time, before a look at what became of them
NOTHING = memoryview(b"")
ENDPOINTS: Mapping[bytes, Endpoint] = {
    b"/dispatch_model": dispatch.answer,
    b"/dispatch_model/": dispatch.answer,
    b"/api/predict": predict.answer,
    b"/api/predict/": predict.answer,
    b"/jobs": jobs.answer,
}


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with a short way to ENDPOINTS.

    An ordinary small POST is answered by its endpoint at once, without scope, messages and routes,
    which cost more than all the rest. Everything else goes uvicorn's way to the ASGI application,
    whose routes call the same endpoints: both ways give the same answers.
    """

    # More attributes than uvicorn's in its dict would be more than Python finds fast: 30.
    __slots__ = ("_head", "_held", "_idle_since", "_short")
    _short: ShortCycle | None  # the last one
    _idle_since: float  # of the loop's clock
    _head: int | None  # bytes so far of the head, or of the trailers, that is being read
    _held: memoryview  # what came behind requests that wait for their turn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._short = self._head = None
        self._held = NOTHING
        self._idle_since = self.loop.time()
        self._look_later(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._held = NOTHING
        super().connection_lost(exc)
        super()._unset_keepalive_if_required()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._head = -PIECE  # as the piece in which it begins is counted whole

    def on_headers_complete(self) -> None:
        self._head = None
        endpoint = ENDPOINTS.get(self.url)
        if endpoint is not None and self._is_ordinary(headers := dict(self.headers)):
            self._short = ShortCycle(self, endpoint, headers)
            self.cycle = self._short  # type: ignore[assignment]  # it has what uvicorn uses of one
            return
        version = self.parser.get_http_version()
        check_head(self.parser.get_method().decode(), version, self.headers)
        if self.parser.should_upgrade():
            return  # it will be parsed once more
        begun = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope, which the short way does without
        self.url, self.scope["headers"], self.expect_100_continue = begun
        super().on_headers_complete()  # self.headers are others now: those of the trailers, if any
        self.cycle.transport = lingering.LingeringTransport(self.transport, self.cycle)
        if version == "1.0":
            unchunk(self.cycle)

    def on_chunk_header(self) -> None:
        self._head = -PIECE

    def on_chunk_complete(self) -> None:
        self._head = None

    def on_body(self, body: bytes) -> None:
        """What uvicorn does, but for a look at upgrades."""
        self._head = None
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            if cycle is not self._short:  # type: ignore[comparison-overlap]  # which waits for the whole
                cycle.message_event.set()

    def on_message_complete(self) -> None:
        """What uvicorn does, and for a request that was answered early too: nothing more of it will come."""
        cycle = self.cycle
        if cycle is not None and cycle.more_body:
            cycle.more_body = False
            if not cycle.response_complete:
                cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        if len(data) <= PIECE and not self._held:
            self._feed(data)
        else:
            self._held = memoryview(bytes(self._held) + data if self._held else data)
            self._go_on()

    def _go_on(self) -> None:
        """Parse what is held, until a request has to wait: as bytes they take less memory."""
        while self._held and not self.pipeline:
            piece, self._held = self._held[:PIECE], self._held[PIECE:]
            self._feed(piece)

    def _feed(self, piece: bytes | memoryview) -> None:
        try:
            try:
                self.parser.feed_data(piece)
            except HttpParserUpgrade as upgrade:
                self._ignore(upgrade, piece)
            if self._head is not None:
                self._limit_head(piece)
        except (HttpParserError, Refused) as error:
            self._refuse(reason(error))
        if self._short is not None and self._short.more_body:
            self._short.watch()

    def _ignore(self, upgrade: HttpParserUpgrade, piece: bytes | memoryview) -> None:
        """Parse `piece` as if nobody had asked for another protocol (RFC 9110, 7.8).

        The parser takes what follows such a head for the other protocol: a new one gets the head without
        what asks for that, and then what follows.
        """
        behind: int | None = upgrade.args[0]
        while behind is not None:
            version = self.parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
            lines += [b"%b: %b" % each for each in self.headers if each[0] != b"upgrade"]
            piece = b"\r\n".join([*lines, b"", piece[behind:]])
            self.parser = HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            try:
                self.parser.feed_data(piece)
                behind = None
            except HttpParserUpgrade as another:
                behind = another.args[0]

    def _limit_head(self, piece: Sized) -> None:
        self._head = (self._head or 0) + len(piece)
        if self._head > MOST_HEAD_BYTES:
            detail = f"The headers, or the URL, are larger than {MOST_HEAD_BYTES} bytes."
            raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def _refuse(self, why: Refused) -> None:
        self._head = None
        refuse(self, why)

    def shutdown(self) -> None:
        """The server stops: what is in flight may finish, but nobody waits for a job any more."""
        self.app_state["gateway"].jobs.stop_waiting()
        super().shutdown()

    def on_response_complete(self) -> None:
        """What uvicorn does, but for the timer: it makes and cancels one for each request."""
        self._idle_since = self.loop.time()
        if self.pipeline:
            super().on_response_complete()  # begins the next
            if not self.pipeline:
                self.flow.resume_reading()
                self._go_on()
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            if self.timeout_keep_alive_task is None:
                self._look_later(self.timeout_keep_alive)
            if self.flow.read_paused:
                self.flow.resume_reading()

    def _unset_keepalive_if_required(self) -> None:
        """The timer goes on: when its time has come it looks whether the connection was idle."""

    def _look_later(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection where it is idle, has never been used, or is too slow with a head."""
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # which sets it again when it is
        if self.transport.get_protocol() is not self:
            return  # it lingers, and has a time of its own for that
        idle = self.cycle is not None and self._head is None
        rest = self._idle_since + (self.timeout_keep_alive if idle else HEAD_PATIENCE) - self.loop.time()
        if rest > 0:
            self._look_later(min(rest, max(1.0, self.timeout_keep_alive)))
        elif self._head is not None:
            self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, "The headers did not arrive in time."))
        else:
            lingering.close(self.transport, self.cycle)

    def _is_ordinary(self, headers: Headers) -> bool:
        """Whether nothing about this request needs more than its headers and a small body."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False  # pipelined: uvicorn keeps them in order
        length = headers.get(b"content-length", b"")
        return (
            len(headers) == len(self.headers)  # no name comes twice
            and b"host" in headers
            and EXTRAORDINARY.isdisjoint(headers)
            and length.isdigit()
            and int(length) <= min(HIGH_WATER_LIMIT, self.app_state["gateway"].limits.max_body_bytes)
            and self.parser.get_method() == POST
            and self.parser.get_http_version() == "1.1"
            and self.limit_concurrency is None
        )


class _Flow(FlowControl):
    """Reads nothing more while requests wait for their turn: it would only wait with them."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if self.read_paused and not self._waiting:
            self.read_paused = False
            self._transport.resume_reading()
