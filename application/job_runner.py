"""Working jobs: through the same PredictionService as everybody, and once in effect."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

from application.asking import Asking, outcome_line
from domain.errors import InternalError, Unavailable, WorkerLost
from domain.job import Failure
from domain.ports import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from application.asking import Outcome
    from application.job_records import JobRecords
    from domain.job import Chunk, Job
    from domain.ports import JobQueue, Predictor

MOST_ATTEMPTS = 10  # begun so often and never finished: whoever works it dies of it
ALONE = 3  # attempts after which it is not worked together with others, which may die of it, too
PATIENCE = 60.0  # seconds in which nothing but failures has come
LONGEST = 1_200.0  # seconds in all; well below the 30 minutes after which RabbitMQ takes a delivery back
LAST_WORD = 3.0  # seconds for the record of what is being worked when it is cancelled


class JobRunner:
    """Works chunks of jobs: asks for each instance, and records what came of it.

    A chunk may be delivered twice, and be worked by two at once: what is recorded first stays.
    What passes is waited for until the job's time is over; after PATIENCE with nothing but failures, or
    LONGEST in all, the chunk is queued anew, so that others get their turn. An answer may take longer.
    An attempt that is cancelled does not count: only those of whoever dies at it do.
    `clock` tells Unix time; `chance` is as in Asking.
    """

    def __init__(
        self,
        records: JobRecords,
        queue: JobQueue,
        predict: Predictor,
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._records = records
        self._queue = queue
        self._predict = predict
        self._clock = clock
        self._chance = chance

    async def run(self, chunks: Sequence[Chunk]) -> None:
        """Work `chunks`: then each is finished, or queued anew, or nothing more is to be done about it.

        Raises QueueUnavailable where that could not be recorded: then they are to be delivered again.
        """
        try:
            if len(chunks) == 1:  # most have, and are spared a task
                await self._work(chunks[0])
                return
            works = [self._work(chunk, alone=False) for chunk in chunks]
            for error in await asyncio.gather(*works, return_exceptions=True):
                if error is not None:
                    raise error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise InternalError from error  # it came from inside: whoever hands out chunks must try again

    async def _work(self, chunk: Chunk, *, alone: bool = True) -> None:
        job, instances = await asyncio.gather(self._records.find(chunk.job), self._records.instances(chunk))
        if job is None or instances is None:
            return  # it was not accepted, or is forgotten
        job = await self._records.change(job, lambda job: _change(job.begun(chunk.number, self._clock())))
        if job is None:
            return
        if job.attempts[chunk.number] > ALONE and not alone:
            await self._queue.publish([chunk], bulk=True)  # where nothing travels together
            return
        try:
            await self._ask(job, chunk, instances)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                await self._withdraw(job, chunk)
            raise

    async def _ask(self, job: Job, chunk: Chunk, instances: bytes) -> None:
        end = asyncio.get_running_loop().time() + min(LONGEST, max(0.0, job.expires_at - self._clock()))
        try:
            async with asyncio.timeout_at(end) as limit:
                patience = _Patience(limit)
                asking = Asking(
                    job,
                    self._predict,
                    chance=self._chance,
                    answered=patience.answered,
                    failed=patience.failed,
                )
                outcomes = await self._outcomes(job, chunk, instances, asking)
        except TimeoutError:
            await self._give_up(job, chunk)
        else:
            await self._finish(job, chunk, outcomes, asking.version)

    async def _outcomes(self, job: Job, chunk: Chunk, instances: bytes, asking: Asking) -> list[Outcome]:
        if job.attempts[chunk.number] > MOST_ATTEMPTS:
            return [Failure.of(WorkerLost())] * job.size(chunk.number)
        return await asking.outcomes(json.loads(instances))

    async def _finish(self, job: Job, chunk: Chunk, outcomes: list[Outcome], version: str | None) -> None:
        failures = [each for each in outcomes if isinstance(each, Failure)]
        lines = b"".join(map(outcome_line, outcomes))

        def finished(now_job: Job) -> Change | None:
            if now_job.replays != job.replays:
                return None  # this was worked for a life of the job that is over
            changed = now_job.chunk_finished(
                chunk.number,
                self._clock(),
                failed=len(failures),
                error=failures[0] if failures else None,
                version=version,
            )
            return _change(changed, chunk.number, lines)

        await self._records.change(job, finished)

    async def _give_up(self, job: Job, chunk: Chunk) -> None:
        if self._clock() >= job.expires_at:
            await self._records.change(job, lambda job: _change(job.expired(self._clock())))
        elif await self._put_back(job, chunk):
            await self._queue.publish([chunk], bulk=job.bulk)

    async def _withdraw(self, job: Job, chunk: Chunk) -> None:
        """Whoever is told to stop lives, so this attempt does not count; unless that cannot be recorded."""
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(LAST_WORD):
                await self._put_back(job, chunk)

    async def _put_back(self, job: Job, chunk: Chunk) -> Job | None:
        def put_back(now_job: Job) -> Change | None:
            if now_job.replays != job.replays:
                return None  # the attempts are those of its next life, and so are the messages
            return _change(now_job.put_back(chunk.number, self._clock()))

        return await self._records.change(job, put_back)


class _Patience:
    """Ends `limit` when for PATIENCE seconds nothing but failures has come.

    No call is cut short by it: that an answer takes longer than this is no failure.
    """

    def __init__(self, limit: asyncio.Timeout) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()

    def answered(self) -> None:
        self._since = self._loop.time()

    def failed(self) -> None:
        now = self._loop.time()
        if now - self._since >= PATIENCE and not self._limit.expired():
            self._limit.reschedule(now)


def _change(job: Job | None, chunk: int = 0, outcomes: bytes | None = None) -> Change | None:
    return None if job is None else Change(job, chunk, outcomes)
