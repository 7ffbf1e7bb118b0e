"""What jobs need when their time comes: to be expired, told of, forgotten, and found where they were lost."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from domain.errors import QueueUnavailable
from domain.job import JobStatus
from domain.ports import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from application.job_records import JobRecords
    from domain.job import Job
    from domain.ports import JobQueue, WebhookSender
    from domain.webhook import Delivery

LOGGER = logging.getLogger("dispatcher.jobs")

EVERY = 1.0  # seconds between two looks
MOST = 200  # jobs at one look
CLAIM = 60.0  # seconds that whoever calls a webhook has for it; longer than its timeout
SEARCH_EVERY = 30.0  # seconds between two searches for lost jobs
QUEUED_LOST = 30.0  # seconds that a job waits although the queue is empty
RUNNING_LOST = 1_800.0  # seconds without a change; RabbitMQ delivers again what takes longer


class Housekeeping:
    """Looks after the jobs of a store; several may, at once. `clock` tells Unix time."""

    def __init__(
        self, records: JobRecords, queue: JobQueue, send: WebhookSender, *, clock: Callable[[], float]
    ) -> None:
        self._records = records
        self._store = records.store
        self._queue = queue
        self._send = send
        self._clock = clock
        self._sending: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Go on until cancelled."""
        loop = asyncio.get_running_loop()
        search_at = loop.time() + SEARCH_EVERY
        try:
            while True:
                try:
                    await self.tidy()
                    if loop.time() >= search_at:
                        await self.search(queued=QUEUED_LOST, running=RUNNING_LOST)
                        search_at = loop.time() + SEARCH_EVERY
                except QueueUnavailable as error:
                    LOGGER.debug("jobs are not looked after: %s", error)
                except Exception:
                    LOGGER.exception("jobs could not be looked after")
                await asyncio.sleep(EVERY)
        finally:
            for task in self._sending:
                task.cancel()
            await asyncio.gather(*self._sending, return_exceptions=True)

    async def tidy(self) -> None:
        """Do what is due."""
        while ids := await self._store.due(self._clock(), MOST):
            forgotten = []
            for job in await self._store.load(ids):
                if job is None or job.due() > self._clock():
                    continue
                if not job.over:
                    await self._records.change(job, self._expired)
                elif job.webhook is not None and job.webhook.next_at is not None:
                    await self._notify(job, job.webhook)
                else:
                    forgotten.append(job.id)
            if forgotten:
                await self._store.delete(forgotten)
            if len(ids) < MOST:
                return

    async def search(self, *, queued: float, running: float) -> None:
        """Queue again what nobody has: jobs without a change for so many seconds, while no queue has any."""
        for bulk in (False, True):
            if await self._queue.is_empty(bulk=bulk):
                await self._search(JobStatus.QUEUED, queued, bulk=bulk)
                await self._search(JobStatus.RUNNING, running, bulk=bulk)

    async def _search(self, status: JobStatus, age: float, *, bulk: bool) -> None:
        before, unchanged_since = None, self._clock() - age
        while True:
            page = await self._store.page(MOST, before=before, status=status)
            lost = [
                chunk
                for job in page.jobs
                if job.bulk is bulk and job.changed_at <= unchanged_since
                for chunk in job.open_chunks()
            ]
            if lost:
                LOGGER.warning("chunks of jobs that nobody worked are queued again: %d", len(lost))
                await self._queue.publish(lost, bulk=bulk)
            before = page.next
            if before is None:
                return

    def _expired(self, job: Job) -> Change | None:
        expired = job.expired(self._clock())
        return None if expired is None else Change(expired)

    async def _notify(self, job: Job, delivery: Delivery) -> None:
        """Claim the call and make it, without waiting for it; whoever dies meanwhile has it made again."""
        until = self._clock() + CLAIM

        def claim(now_job: Job) -> Change | None:
            if now_job.webhook != delivery:
                return None
            return Change(now_job.notified(delivery.claimed(until), self._clock()))

        claimed = await self._records.change(job, claim)
        if claimed is not None:
            task = asyncio.create_task(self._call(claimed))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _call(self, job: Job) -> None:
        assert job.webhook is not None  # it was claimed
        attempt = await self._send(job.webhook.url, job.id, message(job), self._clock())

        def attempted(job: Job) -> Change | None:
            if job.webhook is None:
                return None
            return Change(job.notified(job.webhook.attempted(attempt), self._clock()))

        await self._records.change(job, attempted)


def message(job: Job) -> bytes:
    """What a webhook is told: an event of Standard Webhooks, thin; the results are fetched."""
    assert job.completed_at is not None  # it is over
    data = {
        "id": job.id,
        "status": job.status,
        "model_name": job.model.name,
        "progress": {"done": job.done, "failed": job.failed, "total": job.total},
    }
    ended = datetime.fromtimestamp(job.completed_at, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"type": f"job.{job.status}", "timestamp": ended, "data": data}).encode()
