"""Requests that cannot be read, or must not be: one answer, and nothing behind them is ever parsed."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from httptools import HttpParserCallbackError
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from interface.http import lingering
from interface.http.answer import CLOSE
from interface.http.exchange import Exchange, request_id
from interface.http.problem import plain_problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from httptools import HttpParserError
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Refused(Exception):
    """The request is answered with this status, and the connection closed."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail


class Deaf:
    """Stands where the parser was, and hears nothing of what still comes."""

    def feed_data(self, data: object) -> None:
        """Forget it."""


def check_head(method: str, version: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise Refused where it is not clear to whom the request goes, or where its body ends (RFC 9112)."""
    if version not in {"1.0", "1.1"}:
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "Only HTTP/1.1 and HTTP/1.0 are served.")
    if method == "CONNECT":
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, "This is no proxy: CONNECT is not served.")
    hosts = sum(name == b"host" for name, _ in headers)
    if hosts > 1 or (version == "1.1" and not hosts):
        raise Refused(HTTPStatus.BAD_REQUEST, "The request needs one Host header.")
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and version == "1.0":
        raise Refused(HTTPStatus.BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding.")
    if codings not in ([], [b"chunked"]):
        raise Refused(HTTPStatus.NOT_IMPLEMENTED, "No Transfer-Encoding but chunked is understood.")


def reason(error: HttpParserError | Refused) -> Refused:
    """Why the parser, or what it calls, stopped."""
    for each in (error, error.__context__):
        if isinstance(each, Refused):
            return each
    why = "" if isinstance(error, HttpParserCallbackError) else f": {error}"
    return Refused(HTTPStatus.BAD_REQUEST, f"This is not a valid HTTP request{why}.")


def refuse(protocol: HttpToolsProtocol, why: Refused) -> None:
    """Answer the request that is being read, after all before it, and close the connection behind it."""
    protocol.parser = Deaf()  # type: ignore[assignment]  # it has what is used of one
    last = protocol.cycle
    waits = last is not None and not last.response_complete
    if last is not None and last.more_body:  # it is this request which cannot be read on
        if protocol.pipeline:
            protocol.pipeline.popleft()  # it has not begun
        else:
            waits = False
            last.disconnected = True
            last.message_event.set()
            if last.response_started:
                protocol.flow.resume_reading()
                lingering.linger(protocol.transport)
                return
    exchange = Exchange("-", "-", protocol.client and protocol.client[0], request_id(None), status=why.status)
    answer = plain_problem(why.status, why.detail, exchange.request_id, {})
    answer.headers = [CLOSE, *answer.headers, *exchange.headers()]
    exchange.log()
    protocol.cycle = _cycle(protocol)
    app: Any = answer.response()
    if waits:
        protocol.flow.pause_reading()
        protocol.pipeline.appendleft((protocol.cycle, app))
    else:
        protocol._start_asgi_task(protocol.cycle, app)  # noqa: SLF001  (as uvicorn's own code does)


def _cycle(protocol: HttpToolsProtocol) -> RequestResponseCycle:
    """A request whose body never ends, so that its connection is closed with care."""
    cycle = RequestResponseCycle(
        scope={"type": "http", "method": "GET"},  # type: ignore[typeddict-item]  # all that is used
        transport=protocol.transport,
        flow=protocol.flow,
        logger=protocol.logger,
        access_logger=protocol.access_logger,
        access_log=False,  # we write our own
        default_headers=protocol.server_state.default_headers,
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=False,
        on_response=protocol.on_response_complete,
    )
    cycle.transport = lingering.LingeringTransport(protocol.transport, cycle)
    return cycle
