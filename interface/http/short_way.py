"""One request on the short way past the ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeAlias

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from application.tasks import start
from domain.errors import DeadlineExceeded, DispatchError, InvalidRequest
from interface.http import lingering, preferences
from interface.http.answer import CLOSE, Answer
from interface.http.exchange import CLIENT_CLOSED_REQUEST, Exchange, request_id
from interface.http.problem import problem_answer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Self

    from bootstrap.gateway import Gateway
    from interface.http.preferences import Headers
    from interface.http.protocol import GatewayProtocol

Endpoint: TypeAlias = "Callable[[Gateway, Exchange, Headers, bytes], Answer | Coroutine[None, None, Answer]]"
"""What a route answers to a body: at once, or what is to be awaited. Both raise a DispatchError."""


class ShortCycle:
    """One request on the short way.

    Stands where HttpToolsProtocol keeps its RequestResponseCycle, so that uvicorn's own code goes on to
    collect the body, to see the caller leave, to queue what is pipelined behind, and to shut down:
    it reads and sets the public attributes, and calls `message_event.set()` after each change.
    """

    response_started = False  # it is written as a whole

    def __init__(self, protocol: GatewayProtocol, endpoint: Endpoint, headers: Headers) -> None:
        self.body = bytearray()
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self.keep_alive = protocol.parser.should_keep_alive()
        self._protocol = protocol
        self._endpoint = endpoint
        self._headers = headers
        self._gateway: Gateway = protocol.app_state["gateway"]
        client = protocol.client and protocol.client[0]
        given = headers.get(b"x-request-id")
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
            try:
                answer = found if isinstance(found, Answer) else await found
            except DispatchError as error:
                answer = self._exchange.refusal(error)
            except Exception:  # noqa: BLE001  (the last resort, which logs it)
                answer = self._exchange.failed()
            if self._protocol.flow.write_paused:
                await self._protocol.flow.drain()
        except asyncio.CancelledError:
            self._exchange.log()
            self._protocol.transport.close()  # if the caller is still there: nothing else will come
            raise
        self._send(answer)

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
