"""Publishing together what was accepted one by one."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from application.gathering import Gathering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.job import Chunk
    from domain.ports import JobQueue

BUNDLE = 32  # chunks that travel together, at most; measured, ../docs/decisions/0008-jobs.md


class Bundling:
    """A JobQueue before `queue`, whose messages take long: single chunks that meet travel in one call."""

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._together = {
            bulk: Gathering(partial(self._hand_over, bulk=bulk), most=BUNDLE) for bulk in (False, True)
        }
        self.is_empty = queue.is_empty

    async def publish(self, chunks: Sequence[Chunk], *, bulk: bool) -> None:
        """As JobQueue.publish; also raises Overloaded."""
        if len(chunks) == 1:
            await self._together[bulk](chunks[0])
        else:
            await self._queue.publish(chunks, bulk=bulk)

    async def _hand_over(self, chunks: Sequence[Chunk], *, bulk: bool) -> Sequence[None]:
        await self._queue.publish(chunks, bulk=bulk)
        return [None] * len(chunks)
