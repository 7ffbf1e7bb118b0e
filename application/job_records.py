"""The records of jobs as the application uses them: one by one, and gathered on their way to the store."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from application.gathering import Gathering
from domain.errors import JobNotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from domain.job import Chunk, Job
    from domain.ports import Change, Created, JobStore, NewJob

MOST = 256  # that travel to the store together


class JobRecords:
    """Creates, reads and changes single records; those who meet travel together.

    Raises QueueUnavailable where the store does, or Overloaded.
    """

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.create: Gathering[NewJob, Created] = Gathering(store.create, most=MOST)
        self.find: Gathering[str, Job | None] = Gathering(store.load, most=MOST)
        self.instances: Gathering[Chunk, bytes | None] = Gathering(store.instances, most=MOST)
        self.outcomes: Gathering[Chunk, bytes | None] = Gathering(store.outcomes, most=MOST)
        self._save: Gathering[Change, bool] = Gathering(store.save, most=MOST)
        self._turns: dict[str, _Turn] = {}

    async def get(self, job_id: str) -> Job:
        """The record of this job. Raises JobNotFound."""
        job = await self.find(job_id)
        if job is None:
            raise JobNotFound(f"There is no job {job_id!r}; it may have been forgotten.")
        return job

    async def change(self, job: Job, change: Callable[[Job], Change | None]) -> Job | None:
        """Apply `change` to the record that was last seen as `job`, and return the new one.

        Where it has changed meanwhile, `change` sees it as it is now: it may be called several times, and
        may raise. None where `change` said None (there is nothing to do any more), or the job is gone.
        """
        turn = self._turns.get(job.id)
        if turn is None:
            turn = self._turns[job.id] = _Turn(job)
        turn.takers += 1
        try:
            async with turn.lock:
                if turn.error is not None:
                    raise turn.error
                return await self._change(turn, job, change)
        finally:
            turn.takers -= 1
            if not turn.takers:
                del self._turns[job.id]

    async def _change(self, turn: _Turn, job: Job, change: Callable[[Job], Change | None]) -> Job | None:
        found: Job | None = max(job, turn.newest, key=lambda each: each.revision)
        while found is not None:
            wanted = change(found)
            if wanted is None:
                return None
            try:
                if await self._save(wanted):
                    turn.newest = wanted.job
                    return wanted.job
                found = await self.find(job.id)
            except Unavailable as error:
                turn.error = error
                raise
        return None

    async def aclose(self) -> None:
        """Wait until all is done that was asked for."""
        everything = (self.create, self.find, self.instances, self.outcomes, self._save)
        await asyncio.gather(*(each.aclose() for each in everything))


class _Turn:
    """Those who change one job in this process, one after another: at once, all but one would do so in vain.

    Where the store fails one of them, those who wait behind are told so, too, and at once.
    """

    __slots__ = ("error", "lock", "newest", "takers")

    def __init__(self, job: Job) -> None:
        self.newest = job
        self.lock = asyncio.Lock()
        self.takers = 0
        self.error: Unavailable | None = None
