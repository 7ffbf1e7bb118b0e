"""Accepting jobs, and changing them as a person wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from application.job_reader import JobReader
from domain.errors import InvalidRequest, JobConflict, QueueUnavailable
from domain.job import Chunk, Job
from domain.ports import Change, NewJob
from domain.prediction import CACHE
from domain.webhook import Delivery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from application.job_records import JobRecords
    from domain.ports import Created, IdempotencyKey, JobQueue
    from domain.prediction import CacheControl, Json, ModelRef

CHUNK = 250  # instances that are queued and worked together, at most

_ENCODER = json.JSONEncoder(separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Submission:
    """What a caller wants done; `timeout`, `retention` (in seconds) and `cache` as in Job.

    `idempotency` is the caller's `Idempotency-Key` with the fingerprint of what it sends.
    """

    model: ModelRef
    timeout: float
    retention: float
    parameters: Mapping[str, Json] = field(default_factory=dict)
    partition: str = ""
    bulk: bool = False
    webhook: str | None = None
    idempotency: IdempotencyKey | None = None
    cache: CacheControl = CACHE


class JobService(JobReader):
    """Jobs from their acceptance to their answer: whoever accepts them tells of them, too.

    `clock` tells Unix time, `check` raises ModelNotFound or VersionNotFound for what nobody serves.
    """

    def __init__(
        self,
        records: JobRecords,
        queue: JobQueue,
        *,
        clock: Callable[[], float],
        check: Callable[[ModelRef], Awaitable[None]],
    ) -> None:
        super().__init__(records)
        self._queue = queue
        self._clock = clock
        self._check = check

    # --- accepting

    async def submit(self, submission: Submission, instances: Sequence[Json]) -> Job:
        """Accept work of at most CHUNK instances: it is recorded and queued, durably, once this returns.

        The job that the idempotency key has named before, if it has. Raises QueueUnavailable, Overloaded,
        and InvalidRequest where that key was for something else.
        """
        await self._check(submission.model)
        return await self._accept(self._new(submission, len(instances)), submission, encode(instances))

    async def submit_chunks(
        self,
        submission: Submission,
        chunks: AsyncIterator[tuple[int, bytes]],
        identify: Callable[[], IdempotencyKey] | None = None,
    ) -> Job:
        """The same for any number of instances, as they come.

        `chunks` are JSON lists with their lengths, all but the last of CHUNK. What it raises, this does.
        `identify` tells the submission's idempotency key when all have come: its fingerprint is of them, too.
        """
        await self._check(submission.model)
        job_id, total, index = new_id(self._clock()), 0, 0
        try:
            async for size, instances in chunks:
                await self._store.put_instances([(Chunk(job_id, index), instances)])
                total, index = total + size, index + 1
        except BaseException:
            await self._forget(job_id)
            raise
        if identify is not None:
            submission = replace(submission, idempotency=identify())
        return await self._accept(self._new(submission, total, job_id), submission, None)

    async def submit_and_wait(
        self, submission: Submission, instances: Sequence[Json], until: float
    ) -> tuple[Job, bytes | None]:
        """`submit`, and then `wait` and the outcomes, where it is over by then.

        What must not be stored is forgotten once it is told.
        """
        await self._check(submission.model)
        new = self._new(submission, len(instances))
        with self._watch.watch(new.id) as watcher:
            job = await self._accept(new, submission, encode(instances))
            while not job.over and job.id == new.id and await watcher.changed(until):
                job = await self._records.get(job.id)
        if job.id != new.id:  # it was accepted before
            job = await self.wait(job.id, until)
        outcomes = await self._records.outcomes(Chunk(job.id, 0)) if job.over else None
        if job.over and not submission.cache.store:
            await self._forget(job.id)
        return job, outcomes

    def _new(self, submission: Submission, total: int, job_id: str | None = None) -> Job:
        now = self._clock()
        return Job(
            job_id or new_id(now),
            submission.model,
            total,
            CHUNK,
            now,
            now + submission.timeout,
            submission.retention,
            submission.parameters,
            submission.partition,
            submission.bulk,
            submission.cache,
            changed_at=now,
            webhook=None if submission.webhook is None else Delivery(submission.webhook),
        )

    async def _accept(self, job: Job, submission: Submission, instances: bytes | None) -> Job:
        try:
            created = await self._create(NewJob(job, instances, submission.idempotency))
            if created.id == job.id:
                await self._queue.publish(job.open_chunks(), bulk=job.bulk)
                return job
        except BaseException:
            # It was not accepted: should its message be out all the same, whoever gets that finds no job.
            # By its key another caller may have been told that it is; then it stays, and is found and worked.
            if submission.idempotency is None:
                await self._forget(job.id)
            raise
        return await self._accepted_before(job, created, submission.idempotency)

    async def _create(self, new: NewJob) -> Created:
        creating = self._records.create(new)
        try:
            return await asyncio.shield(creating)
        except asyncio.CancelledError:
            creating.add_done_callback(_heard)
            await asyncio.wait([creating])  # what is forgotten before it is recorded stays
            raise

    async def _accepted_before(self, new: Job, created: Created, key: IdempotencyKey | None) -> Job:
        await self._forget(new.id)
        if key is None or created.fingerprint != key.fingerprint:
            raise InvalidRequest("This Idempotency-Key was used for another request; choose a new one.")
        job = await self._records.get(created.id)
        # Whoever recorded it may have died before this, or in the midst of it.
        await self._publish_untouched(job)
        return job

    async def _publish_untouched(self, job: Job) -> None:
        chunks = job.untouched_chunks()
        if chunks:
            await self._queue.publish(chunks, bulk=job.bulk)

    async def _forget(self, job_id: str) -> None:
        with contextlib.suppress(QueueUnavailable):
            await self._store.delete([job_id])

    # --- changing

    async def cancel(self, job_id: str) -> Job:
        """End the job; what is being asked for it is asked in vain. Raises JobNotFound, JobConflict."""
        job = await self._records.get(job_id)
        return await self._changed(job, lambda job: Change(job.canceled(self._clock())))

    async def replay(self, job_id: str) -> Job:
        """Work a failed job once more, in as much time as it had. Raises JobNotFound, JobConflict.

        May be repeated until it is over, as it should be after QueueUnavailable.
        """

        def replayed(job: Job) -> Change | None:
            return None if job.replays and not job.over else Change(job.replayed(self._clock()))

        job = await self._changed(await self._records.get(job_id), replayed)
        await self._publish_untouched(job)
        return job

    async def notify_again(self, job_id: str) -> Job:
        """Call the webhook of a job that is over again, now. Raises JobNotFound, JobConflict."""
        job = await self._records.get(job_id)

        def again(job: Job) -> Change:
            if job.webhook is None or not job.over:
                raise JobConflict("The job has no webhook, or is not over.")
            now = self._clock()
            return Change(job.notified(job.webhook.scheduled(now), now))

        return await self._changed(job, again)

    async def _changed(self, job: Job, change: Callable[[Job], Change | None]) -> Job:
        return await self._records.change(job, change) or await self._records.get(job.id)


def new_id(now: float) -> str:
    """A job's id: unguessable, as it is all one needs to read it, and in order of time, as indices like it.

    A UUID of version 7 (RFC 9562), which the standard library has from Python 3.14 on.
    """
    chance = secrets.randbits(74)
    number = int(now * 1000) << 80 | 7 << 76 | chance >> 62 << 64 | 2 << 62 | chance & (1 << 62) - 1
    digits = f"{number:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def encode(instances: Sequence[Json]) -> bytes:
    """A chunk's instances as they are stored."""
    return _ENCODER.encode(instances).encode()


def _heard(creating: asyncio.Future[Created]) -> None:
    """Nobody waits for it any more: what it may have raised is told to nobody."""
    if not creating.cancelled():
        creating.exception()
