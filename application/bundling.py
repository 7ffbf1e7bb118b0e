"""Publishing together what was accepted one by one."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from application.gathering import Gathering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.job import Chunk
    from domain.ports import JobQueue

PORTION = 256  # chunks of those who publish many that are under way at once
BUNDLE = 32  # chunks that travel together, at most; measured, ../docs/decisions/0008-jobs.md


class Bundling:
    """A JobQueue before `queue`, whose messages take long: chunks that meet travel together.

    As what travels together is worked together, of interactive ones no more than BUNDLE do, whoever publishes
    more. Bulk ones are worked one by one.
    """

    def __init__(self, queue: JobQueue) -> None:
        self._queue = queue
        self._together = {
            bulk: Gathering(partial(self._hand_over, bulk=bulk), most=BUNDLE) for bulk in (False, True)
        }
        self.is_empty = queue.is_empty

    async def publish(self, chunks: Sequence[Chunk], *, bulk: bool) -> None:
        """As JobQueue.publish; also raises Overloaded."""
        if len(chunks) == 1:  # most have, and are spared the rest
            await self._together[bulk](chunks[0])
            return
        for start in range(0, len(chunks), PORTION):
            portion = chunks[start : start + PORTION]
            if bulk:
                await self._queue.publish(portion, bulk=True)
            else:
                await asyncio.gather(*map(self._together[False], portion))

    async def _hand_over(self, chunks: Sequence[Chunk], *, bulk: bool) -> Sequence[None]:
        await self._queue.publish(chunks, bulk=bulk)
        return [None] * len(chunks)
