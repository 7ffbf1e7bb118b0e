"""A short way through uvicorn for the routes that carry the load."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPMethod
from typing import TYPE_CHECKING, TypeAlias

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from application.tasks import start
from domain.errors import DeadlineExceeded, DispatchError, InvalidRequest
from interface.http import dispatch, jobs, lingering, predict, preferences
from interface.http.answer import CLOSE, Answer
from interface.http.exchange import CLIENT_CLOSED_REQUEST, Exchange, request_id
from interface.http.problem import problem_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Self

    from bootstrap.gateway import Gateway
    from interface.http.preferences import Headers


Endpoint: TypeAlias = "Callable[[Gateway, Exchange, Headers, bytes], Answer | Coroutine[None, None, Answer]]"
"""What a route answers to a body: at once, or what is to be awaited. Both raise a DispatchError."""

POST = HTTPMethod.POST.value.encode()
EXTRAORDINARY = {b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"}
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

    _short: _ShortCycle | None = None  # the last one
    _idle_since = 0.0  # of the loop's clock

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        endpoint = ENDPOINTS.get(self.url)
        if endpoint is not None and self._is_ordinary():
            self._short = _ShortCycle(self, endpoint)
            self.cycle = self._short  # type: ignore[assignment]  # it has what uvicorn uses of one
            return
        begun = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope, which the short way does without
        self.url, self.headers, self.expect_100_continue = begun
        self.scope["headers"] = self.headers
        last = self.cycle
        super().on_headers_complete()
        if self.cycle is not last:  # there is none where the protocol changes
            self.cycle.transport = lingering.LingeringTransport(self.transport, self.cycle)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._short is not None and self._short.more_body:
            self._short.watch()

    def on_response_complete(self) -> None:
        """What uvicorn does, but for the timer: it makes and cancels one for each request."""
        self._idle_since = self.loop.time()
        if self.pipeline or self.timeout_keep_alive_task is None:
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _unset_keepalive_if_required(self) -> None:
        """The timer goes on: when its time has come it looks whether the connection was idle."""

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            return  # which sets it again when it is
        if self.transport.get_protocol() is not self:
            return  # it lingers, and has a time of its own for that
        rest = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if rest > 0:
            self.timeout_keep_alive_task = self.loop.call_later(rest, self.timeout_keep_alive_handler)
        else:
            lingering.close(self.transport, self.cycle)

    def _is_ordinary(self) -> bool:
        """Whether nothing about this request needs more than its headers and a small body."""
        if self.cycle is not None and not self.cycle.response_complete:
            return False  # pipelined: uvicorn keeps them in order
        length = b""
        for name, value in self.headers:
            if name == b"content-length":
                length = value
            elif name in EXTRAORDINARY:
                return False
        return (
            length.isdigit()
            and int(length) <= min(HIGH_WATER_LIMIT, self.app_state["gateway"].limits.max_body_bytes)
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
        self._headers = preferences.by_name(protocol.headers)
        self._gateway: Gateway = protocol.app_state["gateway"]
        client = protocol.client and protocol.client[0]
        given = self._headers.get(b"x-request-id")
        self._exchange = Exchange("POST", protocol.url.decode(), client, request_id(given))
        self._answered = False  # which is written at the end of the turn
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
        elif not self.more_body and self._task is None and not self._answered:
            self._stop_waiting()
            self._begin()

    def _begin(self) -> None:
        """Answer at once where nothing has to be waited for; else in a task."""
        try:
            found = self._endpoint(self._gateway, self._exchange, self._headers, bytes(self.body))
        except DispatchError as error:
            found = self._exchange.refusal(error)
        except Exception:  # noqa: BLE001  (the last resort, which logs it)
            found = self._exchange.failed()
        if isinstance(found, Answer) and not self._protocol.flow.write_paused:
            self._send(found)
        else:
            self._task = start(self._answer(found))

    def watch(self) -> None:
        """Limit the time in which the rest of the body may come."""
        if self._patience is None:
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
        self._send(problem_answer(error, self._exchange.request_id))

    async def _answer(self, found: Answer | Coroutine[None, None, Answer]) -> None:
        """Send what is found, but not before the caller has read enough of the answers before."""
        try:
            answer = found if isinstance(found, Answer) else await self._awaited(found)
            if self._protocol.flow.write_paused:
                await self._protocol.flow.drain()
        except asyncio.CancelledError:
            self._exchange.log()
            self._protocol.transport.close()  # if the caller is still there: nothing else will come
            raise
        self._send(answer)

    async def _awaited(self, work: Coroutine[None, None, Answer]) -> Answer:
        try:
            return await work
        except DispatchError as error:
            return self._exchange.refusal(error)
        except Exception:  # noqa: BLE001  (the last resort, which logs it)
            return self._exchange.failed()

    def _send(self, answer: Answer) -> None:
        """Write the answer at the end of this turn of the loop, behind all others of the turn.

        Each write to a caller who sleeps wakes it up, which costs more than the write;
        written in a row, the first wakes the process of many callers for all.
        """
        self._answered = True
        self._exchange.status = answer.status
        self._protocol.loop.call_soon(self._write, answer)

    def _write(self, answer: Answer) -> None:
        if self.disconnected:
            self._exchange.status = CLIENT_CLOSED_REQUEST
        else:
            try:
                self._finish(answer)
            except Exception:  # noqa: BLE001  (which is logged; nobody else would close the connection)
                self._protocol.transport.close()
                self._exchange.failed()
        self._exchange.log()

    def _finish(self, answer: Answer) -> None:
        close = not self.keep_alive or CLOSE in answer.headers
        self._protocol.transport.write(self._written(answer, close=close))
        self.response_complete = True
        if close:
            lingering.close(self._protocol.transport, self)
        self._protocol.on_response_complete()

    def _written(self, answer: Answer, *, close: bool) -> bytes:
        headers = [*self._protocol.server_state.default_headers, *answer.headers, *self._exchange.headers()]
        if close and CLOSE not in headers:
            headers.append(CLOSE)
        return b"%bcontent-type: %b\r\ncontent-length: %d\r\n%b\r\n\r\n%b" % (
            STATUS_LINE[answer.status],
            answer.media_type,
            len(answer.body),
            b"\r\n".join(map(b": ".join, headers)),
            answer.body,
        )
