"""Celery's worker as we run it: a pool for each queue, a stop that ends, and messages that cannot harm it."""

# ruff: noqa: ANN401  (Celery is not typed)

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from billiard.einfo import ExceptionInfo  # type: ignore[import-untyped]
from celery.app.trace import setup_worker_optimizations  # type: ignore[import-untyped]
from celery.concurrency.base import BasePool, apply_target  # type: ignore[import-untyped]
from celery.concurrency.thread import ApplyResult  # type: ignore[import-untyped]
from celery.worker import WorkController  # type: ignore[import-untyped]
from celery.worker.consumer import Consumer  # type: ignore[import-untyped]
from celery.worker.state import maybe_shutdown  # type: ignore[import-untyped]

from infrastructure.celery_messages import BULK, INTERACTIVE

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery  # type: ignore[import-untyped]

LOGGER = logging.getLogger("dispatcher.jobs")

AWAKE = 0.25  # seconds after which the worker looks whether it is to stop
TOLD = 2  # attempts to connect in vain: one may be a hiccup
CANCEL_TIMEOUT = 5.0  # seconds for what was cancelled to end


class LanePool(BasePool):  # type: ignore[misc]
    """Threads for each queue, `limit` of them, which is how many messages are taken of it at a time.

    So what is delivered is begun, and no queue waits for another; not even after a lost connection, when
    messages come again while they are still worked.
    A worker that is stopped gives `grace` seconds to what is running, then calls `cancel`.
    """

    body_can_be_buffer = True
    signal_safe = False
    grace = 30.0

    @staticmethod
    def cancel() -> None:
        """End all that is running, soon."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._threads = {name: ThreadPoolExecutor(self.limit, name) for name in (INTERACTIVE, BULK)}
        self._running: set[Future[None]] = set()
        self._hub: Any = None

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        error_callback: Callable[[ExceptionInfo], Any] | None = None,
        **_: Any,
    ) -> ApplyResult:
        def apply() -> None:
            try:
                apply_target(target, args, kwargs, callback, accept_callback)
            except Exception:  # noqa: BLE001  none of the task's: those have gone to `callback`
                if error_callback is not None:
                    error_callback(ExceptionInfo())

        queue = args[2]["delivery_info"]["routing_key"]
        future = self._threads.get(queue, self._threads[BULK]).submit(apply)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return ApplyResult(future)

    def register_with_event_loop(self, hub: Any) -> None:
        self._hub = hub
        hub.call_repeatedly(AWAKE, _nothing)

    def on_stop(self) -> None:
        """Nothing more is taken when this is called, and the connection is open still."""
        LOGGER.info("worker stopping", extra=_fields(self._running))
        if not self._settled(self.grace):
            LOGGER.warning("work is cut short, and will be done by others", extra=_fields(self._running))
            self.cancel()
            if not self._settled(CANCEL_TIMEOUT):
                LOGGER.error("work does not end", extra=_fields(self._running))
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def on_terminate(self) -> None:
        self.cancel()
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    def _settled(self, seconds: float) -> bool:
        """Whether nothing is running any more, after that many seconds at most."""
        until = time.monotonic() + seconds
        while self._running and time.monotonic() < until:
            self._turn()
        return not self._running

    def _turn(self) -> None:
        """Acknowledge what is done, and have the connection live: whoever says nothing is taken for dead."""
        if self._hub is not None:
            try:
                self._hub.run_once()
            except Exception:  # noqa: BLE001  it is lost; what is running may still be recorded
                self._hub = None
        else:
            time.sleep(AWAKE / 5)


class JobConsumer(Consumer):  # type: ignore[misc]
    """Connects again at once, and sets aside what is no task of ours, without telling what was in it."""

    failures = 0  # to connect, in a row

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """Without the 28 queues for delayed tasks: there are none."""

        default_steps = tuple(
            step for step in Consumer.Blueprint.default_steps if not step.endswith("DelayedDelivery")
        )

    def connect(self) -> Any:
        connection = super().connect()
        for queue in self.app.conf.task_queues:  # those that are not consumed, too
            queue(connection.default_channel).declare()
        return connection

    def ensure_connected(self, conn: Any) -> Any:
        # Celery waits 2, 4, 6 … 30 s between attempts.
        connected = conn.ensure_connection(
            self._not_connected,
            None,
            interval_start=0.2,
            interval_step=0.2,
            interval_max=1.0,
            callback=maybe_shutdown,
        )
        self.first_connection_attempt = False
        if self.failures >= TOLD:
            LOGGER.info("queue found")
        self.failures = 0
        return connected

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(*args, **options)

        def guarded(message: Any) -> None:
            try:
                handle(message)
            except self.connection_errors:
                raise
            except Exception as error:  # noqa: BLE001  Celery would stop, and whoever gets it next
                self._set_aside(message, error)

        return guarded

    def on_unknown_message(self, body: object, message: Any) -> None:  # noqa: ARG002
        self._set_aside(message)

    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:  # noqa: ARG002
        self._set_aside(message, exc)

    def on_invalid_task(self, body: object, message: Any, exc: Exception) -> None:  # noqa: ARG002
        self._set_aside(message, exc)

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self._set_aside(message, exc)

    def _set_aside(self, message: Any, error: Exception | None = None) -> None:
        kind = "" if error is None else type(error).__name__
        LOGGER.error("a message that is no task was set aside", extra={"fields": {"error": kind}})
        if not message.acknowledged:
            message.reject_log_error(LOGGER, self.connection_errors)

    def _not_connected(self, error: Exception, interval: float) -> None:
        self.failures += 1
        if self.failures in (TOLD, 30):
            fields = {"error": type(error).__name__, "again_in": interval}
            LOGGER.error("queue lost", extra={"fields": fields})


def run_worker(
    app: Celery, *, name: str, at_once: int, events: bool, grace: float, cancel: Callable[[], None]
) -> int:
    """Work in this thread until `celery.worker.state.should_stop` is set; the exit code.

    `at_once` messages of each queue are worked at a time. With `events` it tells the monitor Flower what it
    does, and obeys it.
    """
    setup_worker_optimizations(app, name)
    app.conf.worker_enable_remote_control = events
    worker = WorkController(
        app=app,
        hostname=name,
        pool_cls=type("Pool", (LanePool,), {"grace": grace, "cancel": staticmethod(cancel)}),
        consumer_cls=JobConsumer,
        concurrency=at_once,  # of each of a channel's consumers: quorum queues know no other limit
        queues=[INTERACTIVE, BULK],
        task_events=events,
        without_heartbeat=not events,
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _nothing() -> None:
    """Only to be woken for."""


def _fields(running: set[Future[None]]) -> dict[str, object]:
    return {"fields": {"messages": len(running)}}
