"""What jobs in Redis outlive: it is killed, hangs, comes late; and whether it is one that keeps them."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from redis import Redis

from bootstrap.jobs import open_shelf
from bootstrap.settings import JobsSettings
from domain.errors import QueueUnavailable
from domain.events import JobsAtRisk
from domain.job import Chunk, Job, JobStatus
from domain.ports import Change, Created, IdempotencyKey, NewJob
from infrastructure.redis_connection import CONNECT_TIMEOUT, RedisConnection
from infrastructure.redis_durability import durability
from infrastructure.redis_jobs import RedisJobs
from tests.integration.recorded_jobs import begun, finished, job
from tests.integration.redis_job_store import BACK_AGAIN, SLACK, TIMEOUT, fails_within, storing
from tests.integration.redis_server import RunningRedis
from tests.integration.test_redis import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from domain.events import Event


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[RunningRedis]:
    """One that keeps what it has answered, whatever happens to it."""
    running = RunningRedis(tmp_path, ("--appendonly", "yes", "--appendfsync", "always"))
    running.start()
    yield running
    running.stop()


async def back(store: RedisJobs, seconds: float = BACK_AGAIN) -> float:
    """The seconds until `store` works again, by itself."""

    async def works() -> bool:
        return not await refuses(store)

    return await eventually(works, "that it works again", seconds)


async def refuses(store: RedisJobs) -> bool:
    """Whether it does, in bounded time."""
    try:
        async with asyncio.timeout(2 * TIMEOUT + CONNECT_TIMEOUT + SLACK):
            await store.load(["a"])
    except QueueUnavailable:
        return True
    return False


# --- killed, gone and back


class Client:
    """Creates and works jobs one after the other, and remembers what it was told."""

    def __init__(self, store: RedisJobs) -> None:
        self._store = store
        self.jobs: dict[str, Job] = {}
        self.refused = 0
        self.stopped = False

    async def run(self) -> None:
        while not self.stopped:
            try:
                await self._one(job(str(uuid.uuid4())))
            except QueueUnavailable:
                self.refused += 1
                await asyncio.sleep(0.01)

    async def _one(self, new: Job) -> None:
        key = IdempotencyKey("", new.id, "f")
        assert await self._store.create([NewJob(new, new.id.encode(), key)]) == [Created(new.id, "f")]
        self.jobs[new.id] = new
        for change in (Change(begun(new)), Change(finished(begun(new)), 0, new.id.encode())):
            assert await self._store.save([change]) == [True]
            self.jobs[new.id] = change.job


async def test_whatever_has_returned_is_there_after_redis_was_killed_in_mid_traffic(
    durable_redis: RunningRedis,
) -> None:
    async with storing(durable_redis) as store:
        clients = [Client(store) for _ in range(16)]
        running = asyncio.gather(*(each.run() for each in clients))
        for _ in range(2):
            before = sum(len(each.jobs) for each in clients)
            await eventually(lambda: sum(len(c.jobs) for c in clients) > before + 200, "jobs")  # noqa: B023
            await asyncio.to_thread(durable_redis.kill)
            await asyncio.to_thread(durable_redis.start)
            await back(store)
        for each in clients:
            each.stopped = True
        await running

        for client in clients:
            await same(store, client.jobs)
        assert sum(each.refused for each in clients) > 0


async def same(store: RedisJobs, jobs: dict[str, Job]) -> None:
    """What returned is there; what was asked last may have been done without an answer."""
    loaded = await store.load(list(jobs))
    outcomes = await store.outcomes([Chunk(each, 0) for each in jobs])
    instances = await store.instances([Chunk(each, 0) for each in jobs])
    for told, found, outcome, put in zip(jobs.values(), loaded, outcomes, instances, strict=True):
        assert found is not None
        assert found == told or found.revision == told.revision + 1
        assert (outcome == told.id.encode()) is found.over
        assert put == told.id.encode()
        assert await store.position(found) is None or found.status is JobStatus.QUEUED


async def test_a_redis_that_is_down_refuses_at_once_and_is_found_again(durable_redis: RunningRedis) -> None:
    async with storing(durable_redis) as store:
        await store.create([NewJob(job(), b"1")])
        durable_redis.kill()
        await fails_within(SLACK, store)
        await fails_within(SLACK, store)
        await asyncio.to_thread(durable_redis.start)

        await back(store)
        assert await store.load(["a"]) == [job()]
        assert await store.save([Change(begun(job()))]) == [True]


async def test_a_redis_that_is_down_from_the_start_is_found_later(own_redis: RunningRedis) -> None:
    own_redis.kill()
    async with storing(own_redis) as store:
        await fails_within(SLACK, store)
        await asyncio.to_thread(own_redis.start)

        await back(store)
        assert await store.load(["a"]) == [None]


async def test_a_redis_that_is_loading_its_data_is_not_waited_for(durable_redis: RunningRedis) -> None:
    async with storing(durable_redis) as store:
        await store.create([NewJob(job(str(i)), b"1") for i in range(400)])
        durable_redis.kill()
        durable_redis.process.command += ["--key-load-delay", "1000"]  # microseconds for each command
        durable_redis.process.start()

        assert await back(store, 20.0) > 2.0
        assert [each and each.id for each in await store.load(["0", "399"])] == ["0", "399"]


async def test_a_connection_that_broke_meanwhile_fails_nobody(own_redis: RunningRedis) -> None:
    async with storing(own_redis) as store:
        await store.create([NewJob(job(), b"1")])
        with Redis(port=own_redis.port) as server:
            server.client_kill_filter(_type="normal", skipme=True)

        assert await store.save([Change(begun(job()))]) == [True]


async def test_a_redis_that_hangs_is_not_waited_for_long(own_redis: RunningRedis) -> None:
    async with storing(own_redis) as store:
        await store.create([NewJob(job(), b"1")])
        own_redis.pause()
        await fails_within(2 * TIMEOUT + CONNECT_TIMEOUT + SLACK, store)
        await fails_within(SLACK, store)
        own_redis.resume()

        await back(store)
        assert await store.load(["a"]) == [job()]


# --- durable


@asynccontextmanager
async def looking(url: str) -> AsyncIterator[tuple[RedisConnection, list[Event]]]:
    """A connection that looks whether Redis is durable, and what it tells."""
    told: list[Event] = []
    connection = RedisConnection(url, observe=told.append, timeout=TIMEOUT, greeting=durability(told.append))
    async with aclosing(connection):
        assert await connection.connect()
        yield connection, told


def disconnect_all(redis: RunningRedis) -> None:
    with Redis(port=redis.port) as server:
        server.client_kill_filter(_type="normal", skipme=True)


async def test_a_redis_that_would_lose_jobs_is_told_of_and_used(own_redis: RunningRedis) -> None:
    async with looking(own_redis.url) as (connection, told), aclosing(RedisJobs(connection)) as store:
        assert told == [
            JobsAtRisk(
                "Redis has appendonly no (jobs need yes), appendfsync everysec (jobs need always): "
                "killed, or full, it may lose jobs."
            )
        ]
        await store.create([NewJob(job(), b"1")])

        disconnect_all(own_redis)
        assert await store.load(["a"]) == [job()]
        assert len(told) == 1  # it is as it was


async def test_a_redis_that_would_evict_jobs_is_told_of_when_it_is_connected_to_again(
    durable_redis: RunningRedis,
) -> None:
    async with looking(durable_redis.url) as (connection, told), aclosing(RedisJobs(connection)) as store:
        assert told == []
        for policy in ("allkeys-lru", "noeviction", "volatile-ttl"):
            with Redis(port=durable_redis.port) as server:
                server.config_set("maxmemory-policy", policy)
            disconnect_all(durable_redis)
            await store.load(["a"])

    assert [event.reason.split(",")[0] for event in told if isinstance(event, JobsAtRisk)] == [
        "Redis has maxmemory-policy allkeys-lru (jobs need noeviction): killed",
        "Redis has maxmemory-policy volatile-ttl (jobs need noeviction): killed",
    ]
    assert len(told) == 2


async def test_of_a_redis_that_does_not_say_whether_it_is_durable_nothing_is_told(
    own_redis: RunningRedis,
) -> None:
    with Redis(port=own_redis.port) as server:
        server.acl_setuser(
            "us", enabled=True, passwords=["+pw"], keys="*", channels="*", categories=["+@all", "-@admin"]
        )
    url = own_redis.url.replace("//", "//us:pw@")
    async with looking(url) as (connection, told), aclosing(RedisJobs(connection)) as store:
        await store.create([NewJob(job(), b"1")])

        assert (await store.load(["a"]), told) == ([job()], [])


async def test_a_shelf_whose_redis_would_lose_jobs_says_so_in_the_log(
    own_redis: RunningRedis, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = JobsSettings(redis=SecretStr(own_redis.url), broker=SecretStr("amqp://127.0.0.1:1/"))
    async with open_shelf(chosen) as shelf:
        assert await shelf.records.store.load(["a"]) == [None]

    (record,) = [each for each in caplog.records if each.name == "dispatcher"]
    assert (record.levelname, record.getMessage()) == ("WARNING", "jobs at risk")
    assert "appendonly no" in getattr(record, "fields")["reason"]  # noqa: B009  it is not declared
