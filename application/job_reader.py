"""Telling what becomes of jobs: at once, at their end, and as it happens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from application.job_watch import JobWatch
from domain.errors import JobNotFound
from domain.job import Chunk, JobStatus
from domain.job_events import events_after

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from application.job_records import JobRecords
    from domain.job import Job
    from domain.job_events import JobEvent
    from domain.ports import Page, Search


class Interrupted(Exception):
    """What was asked for is not told to its end: this process stops."""


class JobReader:
    """Reads jobs, and follows them by the hints of their store; it changes nothing."""

    def __init__(self, records: JobRecords) -> None:
        self._records = records
        self._store = records.store
        self._watch = JobWatch()
        self._store.listen(self._watch.heard)

    def stop_waiting(self) -> None:
        """Let nobody wait for a job any more: the process stops, and the jobs go on without it or after it.

        Who waits has LAST_WAIT seconds left, in which an answer on its way arrives; then each is told what is
        true. May be called again.
        """
        self._watch.stop()

    async def get(self, job_id: str) -> Job:
        """The job. Raises JobNotFound."""
        return await self._records.get(job_id)

    async def position(self, job: Job) -> int | None:
        """How many jobs of its kind will be begun before it; None where it is not queued."""
        return await self._store.position(job) if job.status is JobStatus.QUEUED else None

    async def page(self, search: Search) -> Page:
        """As JobStore.page."""
        return await self._store.page(search)

    async def wait(self, job_id: str, until: float) -> Job:
        """The job, once it is over or at `until`, of the event loop's clock. Raises JobNotFound.

        Sooner after `stop_waiting`.
        """
        with self._watch.watch(job_id) as watcher:
            while True:
                job = await self._records.get(job_id)
                if job.over or not await watcher.changed(until):
                    return job

    async def events(
        self, job_id: str, last: tuple[int, int] = (0, 0)
    ) -> AsyncGenerator[tuple[JobEvent, Job] | None, None]:
        """What happens to the job after the event `last`, until it is over; None now and then meanwhile.

        After `stop_waiting` it ends before the job does; who listens asks for what comes after the last.
        Raises JobNotFound, also when it is forgotten meanwhile.
        """
        with self._watch.watch(job_id) as watcher:
            while True:
                job = await self._records.get(job_id)
                news = events_after(job, last)
                for event in news:
                    last = event.id
                    yield event, job
                if job.over:
                    return
                if not news:
                    yield None
                if not await watcher.changed():
                    return

    async def outcomes(self, job_id: str) -> AsyncGenerator[bytes, None]:
        """The outcomes (job_runner.outcome_line) of all instances, in order and as they come, in pieces.

        An instance that was not asked before the job's end has an error.
        Raises JobNotFound, also when it is forgotten meanwhile, and Interrupted after `stop_waiting`.
        """
        with self._watch.watch(job_id) as watcher:
            job, chunk = await self._records.get(job_id), 0
            while chunk < job.chunks:
                if job.has_finished(chunk):
                    outcomes = await self._records.outcomes(Chunk(job_id, chunk))
                    if outcomes is None:
                        raise JobNotFound(f"The job {job_id!r} was forgotten meanwhile.")
                    yield outcomes
                    chunk += 1
                elif job.over:
                    yield _not_asked(job) * job.size(chunk)
                    chunk += 1
                elif await watcher.changed():
                    job = await self._records.get(job_id)
                else:
                    raise Interrupted


def _not_asked(job: Job) -> bytes:
    detail = f"The job was {job.status} before this instance was asked."
    return json.dumps({"error": {"kind": "job-conflict", "detail": detail, "code": None}}).encode() + b"\n"
