"""A worker of jobs: Celery in the main thread, and one event loop where all its jobs meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import uvloop
from celery.worker import state  # type: ignore[import-untyped]

from bootstrap.heartbeat import BEAT, beat
from domain.errors import QueueUnavailable, Unavailable
from infrastructure.celery_app import celery_app
from infrastructure.celery_worker import CANCEL_TIMEOUT, run_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from domain.job import Chunk

LOGGER = logging.getLogger("dispatcher.jobs")

PATIENCE = 500.0  # seconds that a message is kept while its job cannot be recorded; with the 1,200 of
# job_runner.LONGEST less than the 1,800 after which RabbitMQ takes it back
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two attempts meanwhile
FAULT_PAUSE = 1.0  # seconds before a message goes back whose work failed for a reason of ours
LAST = 15  # seconds, after all that may take time at the end, until a worker that hangs is ended


class Runner(Protocol):
    """JobRunner, as far as it matters here."""

    async def run(self, chunks: Sequence[Chunk]) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """What a worker has to know.

    `at_once` messages of each queue are worked at a time: of 32 chunks at most the interactive ones, of one
    the others. `grace` is how long, in seconds, running work may go on when the worker is stopped. With
    `events` the monitor Flower sees, and commands, this worker.
    """

    broker_url: str
    at_once: int = 16
    grace: float = 30.0
    events: bool = False


def work(options: WorkerOptions, build_runner: Callable[[], AbstractAsyncContextManager[Runner]]) -> int:
    """Work jobs in the foreground until SIGTERM or SIGINT; the exit code, 0 where it was stopped so.

    Then nothing more is taken, what is running gets `grace` seconds, and the rest goes back to the queue.
    A second signal ends the process at once; so does the end of the event loop, whatever ended that.
    To be called in the main thread.
    """
    for name in ("celery", "kombu", "amqp"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # we say the same in our own words
    stopping = _listen_to_signals(options.grace)
    loop = JobLoop(build_runner, stopping)
    if not loop.start():
        return 1
    app = celery_app(options.broker_url, loop.work)
    name = f"dispatcher-{os.getpid()}@{socket.gethostname()}"
    LOGGER.info("worker started", extra={"fields": {"name": name}})
    code = run_worker(
        app,
        name=name,
        at_once=options.at_once,
        events=options.events,
        grace=options.grace,
        cancel=loop.cancel,
    )
    if not loop.stop(CANCEL_TIMEOUT):
        _end(code or 1)  # a thread that hangs would keep the process
    LOGGER.info("worker stopped")
    return code


class JobLoop:
    """An event loop in a thread of its own, in which `build_runner` lives, and all chunks are run."""

    def __init__(
        self,
        build_runner: Callable[[], AbstractAsyncContextManager[Runner]],
        stopping: threading.Event,
    ) -> None:
        self._build_runner = build_runner
        self._stopping = stopping
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="jobs", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: Runner | None = None
        self._end: asyncio.Event | None = None
        self._working: set[asyncio.Task[None]] = set()
        self._told = False  # that no sign of life can be given

    def start(self) -> bool:
        """Whether the runner is built."""
        self._thread.start()
        self._ready.wait()
        return self._runner is not None

    def work(self, chunks: Sequence[Chunk]) -> None:
        """Run `chunks` in the loop, and wait for that. Raises what it raises, or CancelledError."""
        assert self._loop is not None  # it is started
        asyncio.run_coroutine_threadsafe(self._work(chunks), self._loop).result()

    def cancel(self) -> None:
        """Cancel all that is running."""
        self._soon(lambda: [task.cancel() for task in self._working])

    def stop(self, seconds: float) -> bool:
        """Leave the runner, and say whether that was done in time."""
        self._stopping.set()
        if self._end is not None:
            self._soon(self._end.set)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _soon(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # it is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback)

    def _main(self) -> None:
        try:
            uvloop.run(self._live())
        except BaseException:
            LOGGER.critical("the worker's event loop has died", exc_info=True)
        if not self._ready.is_set():
            self._ready.set()
        elif not self._stopping.is_set():
            _end(1)  # what it had goes back to the queue as the connection closes

    async def _live(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        async with self._build_runner() as self._runner:
            self._ready.set()
            while not self._end.is_set():
                self._beat()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._end.wait(), BEAT)

    def _beat(self) -> None:
        try:
            beat()
        except OSError as error:  # no reason not to work
            if not self._told:
                LOGGER.warning("no sign of life can be given to a health check: %s", error)
            self._told = True

    async def _work(self, chunks: Sequence[Chunk]) -> None:
        task = asyncio.current_task()
        assert task is not None  # it runs
        self._working.add(task)
        try:
            await self._until_recorded(chunks)
        except QueueUnavailable as error:
            LOGGER.warning("chunks go back to the queue: %s", error)
            raise
        except Exception:  # whatever it was, the chunks are not done: they go back
            LOGGER.exception("chunks could not be worked, and go back to the queue")
            await asyncio.sleep(FAULT_PAUSE)
            raise
        finally:
            self._working.discard(task)

    async def _until_recorded(self, chunks: Sequence[Chunk]) -> None:
        assert self._runner is not None  # it is started
        give_up = asyncio.get_running_loop().time() + PATIENCE
        pause = FIRST_PAUSE
        while True:
            try:
                await self._runner.run(chunks)
            except Unavailable:
                if asyncio.get_running_loop().time() > give_up:
                    raise
            else:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)


def _listen_to_signals(grace: float) -> threading.Event:
    """An event that is set when the worker is told to stop."""
    stopping = threading.Event()

    def stop(number: int, _: object) -> None:
        if state.should_stop is not None:
            _end(128 + number)
        state.should_stop = 0  # Celery looks at it, and stops with this exit code
        signal.alarm(int(grace + 2 * CANCEL_TIMEOUT) + LAST)
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGALRM, lambda *_: _end(1))  # RabbitMQ does not let go of us
    return stopping


def _end(code: int) -> None:
    """At once, whatever runs."""
    logging.shutdown()
    os._exit(code)
