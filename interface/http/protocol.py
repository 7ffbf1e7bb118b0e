"""A short way through uvicorn for the routes that carry the load."""

from __future__ import annotations

import contextlib
from http import HTTPMethod
from typing import TYPE_CHECKING

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from application.tasks import start
from domain.errors import DeadlineExceeded, DispatchError, InvalidRequest
from interface.http import dispatch, preferences
from interface.http.exchange import Exchange, request_id
from interface.http.problem import problem_answer

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Self

    from bootstrap.gateway import Gateway
    from interface.http.answer import Answer
    from interface.http.preferences import Headers

    Endpoint = Callable[[Gateway, Exchange, Headers, bytes], Awaitable[Answer]]

CLOSE = (b"connection", b"close")
POST = HTTPMethod.POST.value.encode()
ENDPOINTS: Mapping[bytes, Endpoint] = {
    b"/dispatch_model": dispatch.answer,
    b"/dispatch_model/": dispatch.answer,
}


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, with a short way to ENDPOINTS.

    An ordinary small POST is answered by its endpoint at once, without scope, messages and routes,
    which cost more than all the rest. Everything else goes uvicorn's way to the ASGI application,
    whose routes call the same endpoints: both ways give the same answers.
    """

    _short: _ShortCycle | None = None  # the last one

    def on_headers_complete(self) -> None:
        endpoint = ENDPOINTS.get(self.url)
        if endpoint is None or not self._is_ordinary():
            super().on_headers_complete()
            return
        self._short = _ShortCycle(self, endpoint)
        self.cycle = self._short  # type: ignore[assignment]  # it has what uvicorn uses of one

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._short is not None:
            self._short.watch()

    def _is_ordinary(self) -> bool:
        """Whether nothing about this request needs more than its headers and a small body."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False  # pipelined: uvicorn keeps them in order
        length = None
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name in {b"transfer-encoding", b"expect", b"upgrade"}:
                return False
        if length is None or not length.isdigit() or int(length) > HIGH_WATER_LIMIT:
            return False
        return (
            int(length) <= self.app_state["gateway"].limits.max_body_bytes
            and self.parser.get_method() == POST
            and self.parser.get_http_version() == "1.1"
            and self.limit_concurrency is None
        )


class _ShortCycle:
    """One request on the short way.

    Stands where HttpToolsProtocol keeps its RequestResponseCycle, so that uvicorn's own code goes on to
    collect the body, to see the caller leave, to queue what is pipelined behind, and to shut down:
    it reads and sets the public attributes, and calls `message_event.set()` after each change.
    """

    def __init__(self, protocol: GatewayProtocol, endpoint: Endpoint) -> None:
        self.body = bytearray()
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self.keep_alive = protocol.parser.should_keep_alive()
        self._protocol = protocol
        self._endpoint = endpoint
        self._headers = dict(protocol.headers)
        self._gateway: Gateway = protocol.app_state["gateway"]
        client = protocol.client and protocol.client[0]
        given = self._headers.get(b"x-request-id")
        self._exchange = Exchange("POST", protocol.url.decode(), client, request_id(given))
        self._task: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    @property
    def message_event(self) -> Self:
        return self

    def set(self) -> None:
        """Something has changed: more of the body is here, or the caller has left."""
        if self.disconnected:
            self._stop_waiting()
            if self._task is not None:
                self._task.cancel()
        elif not self.more_body and self._task is None:
            self._stop_waiting()
            self._task = start(self._run(self._answer()))
            if not self._task.done():
                self._protocol.tasks.add(self._task)
                self._task.add_done_callback(self._protocol.tasks.discard)

    def watch(self) -> None:
        """Limit the time in which the rest of the body may come, unless all of it is here."""
        if self.more_body and self._patience is None:
            seconds = self._gateway.limits.max_timeout
            with contextlib.suppress(InvalidRequest):  # which the endpoint will raise again
                seconds = min(seconds, preferences.seconds(self._headers) or seconds)
            self._patience = self._protocol.loop.call_later(seconds, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()

    def _give_up(self) -> None:
        self.keep_alive = False  # the rest may still come, and is not a request
        error = DeadlineExceeded("The body did not arrive in time.")
        self._task = start(self._run(self._problem(error)))

    async def _run(self, answering: Awaitable[Answer]) -> None:
        try:
            answer = await answering
            await self._protocol.flow.drain()
            if not self.disconnected:
                self._send(answer)
        finally:
            self._exchange.log()

    async def _answer(self) -> Answer:
        try:
            return await self._endpoint(self._gateway, self._exchange, self._headers, bytes(self.body))
        except DispatchError as error:
            return await self._problem(error)
        except Exception:  # noqa: BLE001  (the last resort, which logs it)
            return self._exchange.failed()

    async def _problem(self, error: DispatchError) -> Answer:
        return problem_answer(error, self._exchange.request_id)

    def _send(self, answer: Answer) -> None:
        protocol, exchange = self._protocol, self._exchange
        exchange.status = answer.status
        headers = [
            *protocol.server_state.default_headers,
            (b"content-type", answer.media_type.encode()),
            (b"content-length", b"%d" % len(answer.body)),
            *answer.headers,
            *exchange.headers(),
        ]
        if not self.keep_alive and CLOSE not in headers:
            headers.append(CLOSE)
        lines = [b"%b: %b\r\n" % header for header in headers]
        protocol.transport.write(b"".join([STATUS_LINE[answer.status], *lines, b"\r\n", answer.body]))
        self.response_complete = True
        if CLOSE in headers:
            protocol.transport.close()
        protocol.on_response_complete()
