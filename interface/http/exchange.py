"""What surrounds every request: its id, its times, its line in the access log, and its last resort."""

from __future__ import annotations

import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from domain.errors import InternalError
from interface.http.problem import problem_response

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ACCESS = logging.getLogger("dispatcher.access")
FAILURES = logging.getLogger("dispatcher.failure")

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_KEY = "dispatcher.exchange"
LONGEST_PATH = 200  # characters that are logged
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a caller who left; only ever logged


@dataclass(slots=True)
class Exchange:
    """One request and its response. Times are in seconds; `begun` is of the steady clock."""

    request_id: str
    begun: float = field(default_factory=time.perf_counter)
    model: str | None = None
    server_seconds: float | None = None
    queue_seconds: float = 0.0
    status: int = CLIENT_CLOSED_REQUEST

    def elapsed(self) -> float:
        return time.perf_counter() - self.begun

    def server_timing(self) -> str:
        """The `Server-Timing` header (W3C), in milliseconds."""
        parts = {"total": self.elapsed()}
        if self.server_seconds is not None:
            parts = {"queue": self.queue_seconds, "server": self.server_seconds} | parts
        return ", ".join(f"{name};dur={1000 * seconds:.2f}" for name, seconds in parts.items())


def exchange_of(request: Request) -> Exchange:
    """The exchange that `request` is part of."""
    exchange: Exchange = request.scope[_KEY]
    return exchange


class ExchangeMiddleware:
    """Gives every HTTP request an Exchange and the headers that come of it.

    A caller's `X-Request-Id` is kept where it is short and plain, and made otherwise.
    An exception that nothing else caught is logged and answered as an InternalError.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(_request_id(Headers(scope=scope)))
        # HEAD is GET (RFC 9110, 9.3.2): the server leaves the body out.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        inner = {**scope, _KEY: exchange, "method": method}
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                exchange.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = exchange.request_id
                headers["Server-Timing"] = exchange.server_timing()
            await send(message)

        try:
            await self._app(inner, receive, send_with_headers)
        except Exception:  # the last resort: nothing above may answer without a problem body
            FAILURES.exception("request failed", extra={"fields": {"request_id": exchange.request_id}})
            if started:
                raise
            answer = problem_response(InternalError(), exchange.request_id)
            await answer(inner, receive, send_with_headers)
        finally:
            _log(scope, exchange)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _ID.fullmatch(given) else secrets.token_hex(16)


def _log(scope: Scope, exchange: Exchange) -> None:
    """The access log: the query string, headers and bodies may hold secrets and stay out of it."""
    if not ACCESS.isEnabledFor(logging.INFO):
        return
    client = scope.get("client")
    fields = {
        "request_id": exchange.request_id,
        "client": client[0] if client else None,
        "method": scope["method"],
        "path": scope["path"][:LONGEST_PATH],
        "status": exchange.status,
        "model": exchange.model,
        "duration_ms": round(1000 * exchange.elapsed(), 2),
        "server_ms": None if exchange.server_seconds is None else round(1000 * exchange.server_seconds, 2),
    }
    ACCESS.info("request", extra={"fields": {k: v for k, v in fields.items() if v is not None}})
