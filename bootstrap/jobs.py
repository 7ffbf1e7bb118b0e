"""Where jobs are kept, how they travel, and who works them: embedded in the gateway, or distributed."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from application.bundling import Bundling
from application.housekeeping import Housekeeping
from application.job_records import JobRecords
from application.job_runner import JobRunner
from application.job_service import JobService
from bootstrap.settings import SettingsError
from domain.events import CacheFound, CacheLost, JobsFound, JobsLost
from infrastructure import logs
from infrastructure.celery_queue import CeleryQueue
from infrastructure.local_queue import LocalQueue
from infrastructure.redis_connection import RedisConnection
from infrastructure.redis_durability import durability
from infrastructure.redis_jobs import RedisJobs
from infrastructure.sqlite_database import JobStoreError
from infrastructure.sqlite_jobs import SqliteJobs
from infrastructure.webhook_sender import SignedWebhooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from application.prediction_service import PredictionService
    from bootstrap.settings import JobsSettings
    from domain.events import Event
    from domain.ports import Component, JobQueue

MOST_WAITING = 100_000  # commands for the jobs' Redis; beyond that it is too slow


@dataclass(frozen=True, slots=True)
class Shelf:
    """Where jobs are kept, and how they travel; a `local` queue is worked by this process.

    `components` are what it is made of, by the names that `GET /health` has for them.
    """

    records: JobRecords
    queue: JobQueue
    components: Mapping[str, Component]
    local: LocalQueue | None = None

    def runner(self, predictions: PredictionService) -> JobRunner:
        """Who works its jobs."""
        return JobRunner(
            self.records, self.queue, predictions.predict_each, clock=time.time, chance=random.random
        )

    def service(self, predictions: PredictionService) -> JobService:
        """Who accepts its jobs, and tells of them."""
        return JobService(self.records, self.queue, clock=time.time, check=predictions.expect)


@asynccontextmanager
async def open_shelf(chosen: JobsSettings) -> AsyncIterator[Shelf]:
    """The shelf that is configured; a Redis or a broker that is down may come later. Raises SettingsError."""
    async with AsyncExitStack() as stack:
        if chosen.redis is None or chosen.broker is None:
            store = await stack.enter_async_context(aclosing(await _open(chosen)))
            records, queue = JobRecords(store), LocalQueue()
            stack.push_async_callback(records.aclose)
            yield Shelf(records, queue, {"jobs": store, "queue": queue}, queue)
            return
        redis = await stack.enter_async_context(
            aclosing(
                RedisConnection(
                    chosen.redis.get_secret_value(),
                    observe=_tell,
                    timeout=chosen.redis_timeout,
                    most_waiting=MOST_WAITING,
                    greeting=durability(_tell),
                )
            )
        )
        jobs = await stack.enter_async_context(aclosing(RedisJobs(redis)))
        broker = CeleryQueue(chosen.broker.get_secret_value(), timeout=chosen.broker_timeout)
        distributed = await stack.enter_async_context(aclosing(broker))
        records = JobRecords(jobs)
        stack.push_async_callback(records.aclose)
        yield Shelf(records, Bundling(distributed), {"jobs": jobs, "queue": distributed})


async def _open(chosen: JobsSettings) -> SqliteJobs:
    try:
        return await SqliteJobs.open(chosen.path)
    except JobStoreError as error:
        raise SettingsError(f"jobs.path (DISPATCHER_JOBS__PATH): {error}") from None


def _tell(event: Event) -> None:
    """What a connection to Redis says, of the one that has the jobs."""
    match event:
        case CacheLost(reason):
            logs.log_event(JobsLost(reason))
        case CacheFound():
            logs.log_event(JobsFound())
        case _:
            logs.log_event(event)


@asynccontextmanager
async def looked_after(
    shelf: Shelf, predictions: PredictionService, chosen: JobsSettings
) -> AsyncIterator[None]:
    """Jobs are expired, told of and forgotten meanwhile; those of a local queue are worked."""
    webhooks = SignedWebhooks(
        [secret.get_secret_value() for secret in chosen.webhook_secrets],
        allow_private=frozenset(chosen.webhook_networks),
    )
    housekeeping = Housekeeping(shelf.records, shelf.queue, webhooks, clock=time.time, chance=random.random)
    async with aclosing(webhooks):
        if shelf.local is not None:
            await housekeeping.search(queued=0.0, running=0.0)  # what this gateway left undone
        tasks = [asyncio.create_task(housekeeping.run())]
        if shelf.local is not None:
            tasks.append(asyncio.create_task(shelf.local.run(shelf.runner(predictions).run)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
