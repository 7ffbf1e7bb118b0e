"""A house of jobs, and who looks after it, around stand-ins for the outside."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from application.housekeeping import Housekeeping
from application.job_records import JobRecords
from domain.job import Failure, Job
from domain.ports import Change, NewJob
from domain.prediction import ModelRef
from domain.webhook import Delivery
from tests.fakes_jobs import FakeJobQueue, FakeJobStore, FakeWebhooks
from tests.virtual_time import now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from domain.ports import WebhookSender

EPOCH = 1_700_000_000.0
HOOK = "https://hooks.example/done"


@dataclass
class House:
    """A store, a queue and a receiver, kept by as many housekeepers as a test wants."""

    store: FakeJobStore = field(default_factory=FakeJobStore)
    queue: FakeJobQueue = field(default_factory=FakeJobQueue)
    webhooks: FakeWebhooks = field(default_factory=FakeWebhooks)
    ahead: float = 0.0  # seconds by which the clock was set

    def clock(self) -> float:
        return EPOCH + self.ahead + now()

    def keeper(self, send: WebhookSender | None = None) -> Housekeeping:
        return Housekeeping(
            JobRecords(self.store), self.queue, send or self.webhooks, clock=self.clock, chance=lambda: 0.5
        )

    @contextlib.asynccontextmanager
    async def kept(self, keepers: int = 1, send: WebhookSender | None = None) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.keeper(send).run()) for _ in range(keepers)]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def accept(self, name: str, webhook: str | None = None, *, bulk: bool = False) -> Job:
        at = self.clock()
        hook = None if webhook is None else Delivery(webhook)
        job = Job(name, ModelRef("m"), 1, 500, at, at + 3_600, 86_400, changed_at=at, bulk=bulk, webhook=hook)
        await self.store.create([NewJob(job, b'["x"]')])
        return job

    async def end(self, job: Job, failed: int = 0) -> None:
        error = Failure("server-fault", "It broke.") if failed else None
        ended = job.chunk_finished(0, self.clock(), failed=failed, error=error, version="1")
        assert ended is not None
        assert await self.store.save([Change(ended, 0, b"{}\n")]) == [True]

    async def end_with(self, *webhooks: str) -> None:
        for number, webhook in enumerate(webhooks):
            await self.end(await self.accept(f"{Delivery(webhook).host}-{number}", webhook))

    def webhook(self, name: str) -> Delivery:
        delivery = self.store.jobs[name].webhook
        assert delivery is not None
        return delivery

    def called(self) -> dict[str, int]:
        return Counter(host for host, *_ in self.webhooks.called)
