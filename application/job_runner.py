"""Working jobs: through the same PredictionService as everybody, and once in effect."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from application.asking import Asking, outcome_line
from domain.errors import WorkerLost
from domain.job import Failure
from domain.ports import Change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from application.asking import Outcome
    from application.job_records import JobRecords
    from domain.job import Chunk, Job
    from domain.ports import JobQueue, Predictor

MOST_ATTEMPTS = 10  # begun so often and never finished: whoever works it dies of it
PATIENCE = 600.0  # seconds; well below the 30 minutes after which RabbitMQ takes a delivery back


class JobRunner:
    """Works chunks of jobs: asks for each instance, and records what came of it.

    A chunk may be delivered twice, and be worked by two at once: what is recorded first stays.
    What passes is waited for until the job's time is over; after PATIENCE the chunk is queued anew.
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
        results = await asyncio.gather(*map(self._work, chunks), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    async def _work(self, chunk: Chunk) -> None:
        job, instances = await asyncio.gather(self._records.find(chunk.job), self._records.instances(chunk))
        if job is None or instances is None:
            return  # it was not accepted, or is forgotten
        job = await self._records.change(job, lambda job: _change(job.begun(chunk.number, self._clock())))
        if job is None:
            return
        asking = Asking(job, self._predict, self._chance)
        try:
            async with asyncio.timeout(min(PATIENCE, max(0.0, job.expires_at - self._clock()))):
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

        def finished(job: Job) -> Change | None:
            changed = job.chunk_finished(
                chunk.number,
                self._clock(),
                failed=len(failures),
                error=failures[0] if failures else None,
                version=version,
            )
            return _change(changed, chunk.number, lines)

        await self._records.change(job, finished)

    async def _give_up(self, job: Job, chunk: Chunk) -> None:
        if self._clock() < job.expires_at:
            await self._queue.publish([chunk], bulk=job.bulk)
        else:
            await self._records.change(job, lambda job: _change(job.expired(self._clock())))


def _change(job: Job | None, chunk: int = 0, outcomes: bytes | None = None) -> Change | None:
    return None if job is None else Change(job, chunk, outcomes)
