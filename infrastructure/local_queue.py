"""A queue in this process, for the store that outlives it: what was in it is found there again."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING

from domain.errors import Unavailable
from domain.ports import Condition

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from domain.job import Chunk

LOGGER = logging.getLogger("dispatcher.jobs")
PAUSE = 1.0  # seconds before what failed is tried again


class LocalQueue:
    """A JobQueue that hands chunks to `work` in this process, in order, `at_once` of each kind at a time.

    It has no bound: a chunk here is some 150 bytes, and more of a record in the store, which fills first.
    """

    def __init__(self, *, interactive_at_once: int = 512, bulk_at_once: int = 4) -> None:
        self._lanes = {False: _Lane(interactive_at_once), True: _Lane(bulk_at_once)}

    async def publish(self, chunks: Sequence[Chunk], *, bulk: bool) -> None:
        """Queue `chunks`. The store has them already, durably: that is what makes this safe."""
        self._lanes[bulk].put(chunks)

    async def is_empty(self, *, bulk: bool) -> bool | None:
        """Whether none waits."""
        return not self._lanes[bulk].waiting

    async def condition(self) -> Condition:
        """As Component.condition; nothing can be wrong with it."""
        interactive, bulk = (len(self._lanes[bulk].waiting) for bulk in (False, True))
        return Condition(counts={"interactive": interactive, "bulk": bulk})

    async def run(self, work: Callable[[Sequence[Chunk]], Awaitable[None]]) -> None:
        """Hand everything to `work` until cancelled; then what is being worked is cancelled, too."""
        async with asyncio.TaskGroup() as lanes:
            for lane in self._lanes.values():
                lanes.create_task(lane.run(work))


class _Lane:
    def __init__(self, at_once: int) -> None:
        self.waiting: deque[Chunk] = deque()
        self._at_once = at_once
        self._wake = asyncio.Event()
        self._working: set[asyncio.Task[None]] = set()

    def put(self, chunks: Sequence[Chunk]) -> None:
        self.waiting.extend(chunks)
        if len(self._working) < self._at_once:
            self._wake.set()

    async def run(self, work: Callable[[Sequence[Chunk]], Awaitable[None]]) -> None:
        try:
            while True:
                await self._wake.wait()
                while self.waiting and len(self._working) < self._at_once:
                    task = asyncio.create_task(self._work(work, self.waiting.popleft()))
                    self._working.add(task)
                    task.add_done_callback(self._done)
                self._wake.clear()
        finally:
            for task in self._working:
                task.cancel()
            await asyncio.gather(*self._working, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._wake.set()

    async def _work(self, work: Callable[[Sequence[Chunk]], Awaitable[None]], chunk: Chunk) -> None:
        try:
            await work([chunk])
        except Unavailable as error:  # hundreds may meet it, each second
            LOGGER.debug("a chunk of job %s waits: %s", chunk.job, error)
        except Exception:  # whatever it was, the chunk is not done
            LOGGER.exception("a chunk of job %s could not be worked; it is tried again", chunk.job)
        else:
            return
        await asyncio.sleep(PAUSE)
        self.put([chunk])
