"""What surrounds every request: its id, its times, its line in the access log, and its last resort."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from random import getrandbits  # an id has to be unique, not secret
from typing import TYPE_CHECKING

from domain.errors import InternalError
from interface.http.problem import problem_answer

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from domain.errors import DispatchError
    from interface.http.answer import Answer

ACCESS = logging.getLogger("dispatcher.access")
FAILURES = logging.getLogger("dispatcher.failure")

_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_KEY = "dispatcher.exchange"
LONGEST_PATH = 200  # characters that are logged
CLIENT_CLOSED_REQUEST = 499  # nginx's status for a caller who left; only ever logged


@dataclass(slots=True)
class Exchange:
    """One request and its response. Times are in seconds; `begun` is of the steady clock."""

    method: str
    path: str
    client: str | None
    request_id: str
    begun: float = field(default_factory=time.perf_counter)
    model: str | None = None
    server_seconds: float | None = None
    asked: float = 0.0  # when the pipeline was, of the steady clock
    status: int = CLIENT_CLOSED_REQUEST

    def elapsed(self) -> float:
        return time.perf_counter() - self.begun

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Those that every response gets."""
        return [(b"x-request-id", self.request_id.encode()), (b"server-timing", self._server_timing())]

    def refusal(self, error: DispatchError) -> Answer:
        """The answer for `error`, while it is handled; our own mistake where it cannot be told."""
        try:
            return problem_answer(error, self.request_id)
        except Exception:  # noqa: BLE001  (which is logged)
            return self.failed()

    def failed(self) -> Answer:
        """The last resort, while an exception is handled that nothing else caught: log it, and say so."""
        FAILURES.exception("request failed", extra={"fields": {"request_id": self.request_id}})
        return problem_answer(InternalError(), self.request_id)

    def log(self) -> None:
        """The line in the access log: the query, headers and bodies may hold secrets and stay out of it."""
        if not ACCESS.isEnabledFor(logging.INFO):
            return
        server = self.server_seconds
        fields = {
            "request_id": self.request_id,
            "client": self.client,
            "method": self.method,
            "path": self.path[:LONGEST_PATH],
            "status": self.status,
            "model": self.model,
            "duration_ms": round(1000 * self.elapsed(), 2),
            "server_ms": None if server is None else round(1000 * server, 2),
        }
        ACCESS.info("request", extra={"fields": {k: v for k, v in fields.items() if v is not None}})

    def _server_timing(self) -> bytes:
        """The `Server-Timing` header (W3C), in milliseconds."""
        now = time.perf_counter()
        total = 1000 * (now - self.begun)
        if self.server_seconds is None:
            return b"total;dur=%.2f" % total
        server = 1000 * self.server_seconds
        queue = max(0.0, 1000 * (now - self.asked) - server)
        return b"queue;dur=%.2f, server;dur=%.2f, total;dur=%.2f" % (queue, server, total)


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
        client = scope.get("client")
        given = dict(scope["headers"]).get(b"x-request-id")
        exchange = Exchange(scope["method"], scope["path"], client and client[0], request_id(given))
        # HEAD is GET (RFC 9110, 9.3.2): the server leaves the body out.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        inner = {**scope, _KEY: exchange, "method": method}
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], *exchange.headers()]
            await send(message)

        try:
            await self._app(inner, receive, send_with_headers)
        except Exception:  # the last resort: nothing above may answer without a problem body
            answer = exchange.failed()
            if started:
                raise
            await answer.response()(inner, receive, send_with_headers)
        finally:
            exchange.log()


def request_id(given: bytes | None) -> str:
    """The caller's own where it is short and plain, else a new one."""
    if given is not None and _ID.fullmatch(given):
        return given.decode()
    return f"{getrandbits(128):032x}"
