"""Ending what takes too long: one timer for all that wait, instead of one for each."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

TICKS = 100  # a second: what is cut off is so up to 10 ms late


class Cutoffs:
    """Makes Cutoffs and watches over them, in one event loop.

    They lie in buckets of one tick, and one timer stands at the first: to come and to go costs a
    quarter of `asyncio.timeout` (docs/decisions/0006-hot-path.md), which is why this is here.
    Source: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", SOSP 1987.
    """

    def __init__(self) -> None:
        self._due: dict[int, set[Cutoff]] = {}
        self._first = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def at(self, when: float, loop: asyncio.AbstractEventLoop) -> Cutoff:
        """A context that ends the current task with TimeoutError at `when`, of the clock of its `loop`."""
        tick = math.ceil(when * TICKS)
        due = self._due.get(tick)
        if due is None:
            due = self._due[tick] = set()
            if tick < self._first:
                self._set_timer(tick, loop)
        task = asyncio.current_task(loop)
        assert task is not None
        return Cutoff(due, task)

    def _set_timer(self, tick: int, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._first = tick
        self._timer = loop.call_at(tick / TICKS, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for cutoff in list(self._due.pop(int(self._first))):
            cutoff.cut()
        self._first = math.inf
        if self._due:
            self._set_timer(min(self._due), loop)


class Cutoff:
    """`with` this, its task is cancelled when its time comes, and that becomes a TimeoutError.

    As `asyncio.timeout_at`, whose rules about cancellation from elsewhere it keeps.
    """

    __slots__ = ("_cancelling", "_due", "_task", "passed")

    def __init__(self, due: set[Cutoff], task: asyncio.Task[Any]) -> None:
        self._due = due
        self._task = task
        self._cancelling = 0
        self.passed = False

    def __enter__(self) -> Self:
        self._cancelling = self._task.cancelling()
        self._due.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._due.discard(self)
        if self.passed and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def cut(self) -> None:
        """Its time has come."""
        self.passed = True
        self._task.cancel()
