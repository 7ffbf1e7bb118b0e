"""A process that accepts jobs and one that works them, a second each, around stand-ins for the outside."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from application.bundling import Bundling
from application.job_records import JobRecords
from application.job_runner import JobRunner
from application.job_service import CHUNK, JobService, Submission, encode
from domain import errors
from domain.prediction import ModelRef, PredictionResult
from tests.fakes_jobs import FakeJobQueue, FakeJobStore
from tests.virtual_time import now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from domain.prediction import PredictionRequest

EPOCH = 1_700_000_000.0
TODO = Submission(ModelRef("m"), timeout=60.0, retention=1000.0)


def clock() -> float:
    return EPOCH + now()


async def check(model: ModelRef) -> None:
    if model.name != "m":
        raise errors.ModelNotFound


@dataclass
class Site:
    """A store and a queue with a process that accepts jobs and one that works them, a second each."""

    store: FakeJobStore = field(default_factory=FakeJobStore)
    queue: FakeJobQueue = field(default_factory=FakeJobQueue)
    refuses: bool = False

    def __post_init__(self) -> None:
        self.jobs = self.process()
        self.runner = JobRunner(
            JobRecords(self.store), self.queue, self.predict, clock=clock, chance=lambda: 0.5
        )

    def process(self) -> JobService:
        return JobService(JobRecords(self.store), Bundling(self.queue), clock=clock, check=check)

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(1.0)
        if self.refuses:
            raise errors.InputRejectedByModel("no")
        return PredictionResult(ModelRef("m", "1"), tuple(f"<{i}>" for i in request.instances))

    async def work(self) -> None:
        """Work what is in the queue."""
        await self.runner.run(self.queue.deliver())

    def calls(self) -> list[str]:
        return [name for name, _ in self.store.calls]


async def pieces(total: int) -> AsyncIterator[tuple[int, bytes]]:
    for start in range(0, total, CHUNK):
        size = min(CHUNK, total - start)
        yield size, encode([*range(start, start + size)])


async def settle() -> None:
    """Until everybody waits for time to pass."""
    await asyncio.sleep(0.001)
