"""Waiting for jobs to change: by hints, and by looking again, because hints get lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LOOK_AGAIN = 5.0  # seconds until a hint that was lost is noticed
LAST_WAIT = 1.0  # seconds after `stop`: most who ask for one answer have it by then


class JobWatch:
    """Wakes who waits for a job when its record may have changed."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[Watcher]] = {}
        self._end = math.inf

    @property
    def end(self) -> float:
        """When all waiting is over, of the event loop's clock; infinite until `stop`."""
        return self._end

    def stop(self) -> None:
        """Let nobody wait longer than LAST_WAIT from now, for good; a second call changes nothing."""
        if self._end == math.inf:
            self._end = asyncio.get_running_loop().time() + LAST_WAIT
            self.heard(None)

    def heard(self, ids: Sequence[str] | None) -> None:
        """A JobStore's hint: these have changed, or, with None, any may have."""
        for job_id in self._waiting.keys() & ids if ids is not None else list(self._waiting):
            for watcher in self._waiting[job_id]:
                watcher.wake()

    @contextlib.contextmanager
    def watch(self, job_id: str) -> Iterator[Watcher]:
        """From here on no hint about this job is missed."""
        watcher = Watcher(self)
        self._waiting.setdefault(job_id, set()).add(watcher)
        try:
            yield watcher
        finally:
            watchers = self._waiting[job_id]
            watchers.discard(watcher)
            if not watchers:
                del self._waiting[job_id]


class Watcher:
    """One who waits for one job."""

    __slots__ = ("_hinted", "_wait", "_watch")

    def __init__(self, watch: JobWatch) -> None:
        self._watch = watch
        self._hinted = False
        self._wait: asyncio.Future[None] | None = None

    def wake(self) -> None:
        self._hinted = True
        if self._wait is not None and not self._wait.done():
            self._wait.set_result(None)

    async def changed(self, until: float = math.inf) -> bool:
        """Wait for the next hint; LOOK_AGAIN seconds at most, then look anyway.

        Whether there is time left before `until`, of the event loop's clock, and before the watch's end.
        """
        loop = asyncio.get_running_loop()
        if not self._hinted:
            self._wait = loop.create_future()
            timer = loop.call_at(min(loop.time() + LOOK_AGAIN, until, self._watch.end), self.wake)
            try:
                await self._wait
            finally:
                timer.cancel()
        self._hinted = False
        return loop.time() < min(until, self._watch.end)
