"""What jobs need when their time comes: to be expired, told of, forgotten, and found where they were lost."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from application.webhook_calls import WebhookCalls
from domain.errors import Unavailable
from domain.job import JobStatus
from domain.ports import Change, Search

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from application.job_records import JobRecords
    from domain.job import Job
    from domain.ports import JobQueue, WebhookSender

LOGGER = logging.getLogger("dispatcher.jobs")

EVERY = 1.0  # seconds between two looks
MOST = 200  # jobs at one look
SEARCH_EVERY = 30.0  # seconds between two searches for lost jobs
QUEUED_LOST = 30.0  # seconds that a job waits although the queue is empty
RUNNING_LOST = 1_800.0  # seconds without a change; RabbitMQ delivers again what takes longer


class Housekeeping:
    """Looks after the jobs of a store; several may, at once.

    `clock` tells Unix time; `chance`, in [0, 1), spreads what several would do at once.
    """

    def __init__(
        self,
        records: JobRecords,
        queue: JobQueue,
        send: WebhookSender,
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._records = records
        self._store = records.store
        self._queue = queue
        self._clock = clock
        self._chance = chance
        self._calls = WebhookCalls(records, send, clock=clock, chance=chance)

    async def run(self) -> None:
        """Go on until cancelled; calls that are under way are then ended, within a few seconds."""
        search = partial(self.search, queued=QUEUED_LOST, running=RUNNING_LOST)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_again_and_again(self.tidy, first=0.0, every=EVERY))
                first = SEARCH_EVERY * (0.5 + self._chance())
                tasks.create_task(_again_and_again(search, first=first, every=SEARCH_EVERY))
        finally:
            await self._calls.aclose()

    async def tidy(self) -> None:
        """Do what is due, and begin to call webhooks that are. Raises QueueUnavailable, Overloaded."""
        while ids := await self._store.due(now := self._clock(), MOST):
            found = zip(ids, await self._store.load(ids), strict=True)
            jobs = {job_id: job for job_id, job in found if job is not None and not job.outlived(now)}
            forgotten = [job_id for job_id in ids if job_id not in jobs]
            if forgotten:
                await self._store.delete(forgotten)
            changed = await self._look_after(list(jobs.values()), now)
            if len(ids) < MOST or not (forgotten or changed):
                return

    async def search(self, *, queued: float, running: float) -> None:
        """Queue again what nobody has: jobs without a change for so many seconds, while no queue has any."""
        for bulk in (False, True):
            if not await self._queue.is_empty(bulk=bulk):
                continue
            oldest = (await self._store.backlog(bulk=bulk)).oldest
            if oldest is not None and oldest <= self._clock() - queued:
                await self._search(JobStatus.QUEUED, queued, bulk=bulk)
            await self._search(JobStatus.RUNNING, running, bulk=bulk)

    async def _search(self, status: JobStatus, age: float, *, bulk: bool) -> None:
        """Pages begin with the newest job, and the oldest has waited longest: they are read backwards."""
        unchanged_since = self._clock() - age
        for before in reversed(await self._pages(status)):
            page = await self._store.page(Search(MOST, before, status))
            lost = [
                chunk
                for job in reversed(page.jobs)
                if job.bulk is bulk and job.changed_at <= unchanged_since
                for chunk in job.open_chunks()
            ]
            if lost:
                LOGGER.warning("chunks of jobs that nobody worked are queued again: %d", len(lost))
                await self._queue.publish(lost, bulk=bulk)

    async def _pages(self, status: JobStatus) -> list[int | None]:
        """Where each page of jobs of this status begins."""
        pages: list[int | None] = [None]
        while (following := (await self._store.page(Search(MOST, pages[-1], status))).next) is not None:
            pages.append(following)
        return pages

    async def _look_after(self, jobs: Sequence[Job], now: float) -> bool:
        """Whether anything was to be done. What goes wrong with one job does not disturb the others."""
        doing = (self._do_what_is_due(job, now) for job in jobs)
        results = await asyncio.gather(*doing, return_exceptions=True)
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Unavailable):
                raise result
            if isinstance(result, BaseException):
                LOGGER.error("job %s could not be looked after", job.id, exc_info=result)
        return any(result is True for result in results)

    async def _do_what_is_due(self, job: Job, now: float) -> bool:
        if job.due() > now:
            return False
        if job.over:
            return await self._calls.begin(job)
        return await self._records.change(job, self._expired) is not None

    def _expired(self, job: Job) -> Change | None:
        expired = job.expired(self._clock())
        return None if expired is None else Change(expired)


async def _again_and_again(work: Callable[[], Awaitable[None]], *, first: float, every: float) -> None:
    await asyncio.sleep(first)
    while True:
        try:
            await work()
        except Unavailable as error:
            LOGGER.debug("jobs are not looked after: %s", error)
        except Exception:  # a mistake of ours must not end the looking after
            LOGGER.exception("jobs could not be looked after")
        await asyncio.sleep(every)
