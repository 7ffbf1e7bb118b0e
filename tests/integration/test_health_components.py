"""What a gateway says of its Redis, its RabbitMQ and its file while they are killed, hang and come back."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import time
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from typing import TYPE_CHECKING, Any

import aio_pika
import httpx
from prometheus_client.parser import text_string_to_metric_families

from application.health import Components
from bootstrap.gateway import build
from bootstrap.settings import JobsSettings, RedisSettings, ServerSettings, Settings
from infrastructure.celery_messages import BULK, DEAD
from infrastructure.celery_queue import CeleryQueue
from infrastructure.prometheus import Metrics
from infrastructure.redis_connection import SLOW, RedisConnection
from infrastructure.redis_jobs import RedisJobs
from infrastructure.sqlite_jobs import SqliteJobs
from interface.main import create_app
from tests.fakes_jobs import FakeJobStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    import pytest

    from domain.ports import Component, Condition
    from tests.integration.rabbitmq_server import RunningRabbitMQ
    from tests.integration.redis_server import RunningRedis

SILENT = "It did not answer within 1 s."
GONE = "Redis cannot be reached, or closed the connection."
OK = {"interactive": 0, "bulk": 0, "dead": 0}
IN_TIME = 4.0  # seconds: nobody waits for more than 1, and what is asked may take 5


async def told(components: Components, seconds: float, so: Callable[[Condition], bool]) -> Condition:
    """What is said of the only component once it is `so`; every answer comes in time."""
    give_up = time.monotonic() + seconds
    while True:
        begun = time.monotonic()
        (found,) = (await components.conditions()).values()
        assert time.monotonic() - begun < IN_TIME
        if so(found):
            return found
        assert time.monotonic() < give_up, found
        await asyncio.sleep(0.1)


def fine(found: Condition) -> bool:
    return found.problem is None


def bad(found: Condition) -> bool:
    return found.problem is not None


@asynccontextmanager
async def watched(component: Component) -> AsyncIterator[Components]:
    async with aclosing(Components({"it": component})) as components:
        yield components


async def send(rabbitmq: RunningRabbitMQ, name: str, messages: int) -> None:
    async with await aio_pika.connect(rabbitmq.url) as connection:
        exchange = (await connection.channel()).default_exchange
        for _ in range(messages):
            await exchange.publish(aio_pika.Message(b"x"), name)


async def test_a_rabbitmq_that_hangs_is_told_in_time(rabbitmq: RunningRabbitMQ, queue: CeleryQueue) -> None:
    async with watched(queue) as components:
        rabbitmq.pause()  # it may still answer what was asked just then
        try:
            assert (await told(components, 5, bad)).problem == SILENT
            await told(components, 10, lambda found: found.problem == "RabbitMQ did not answer in time.")
        finally:
            rabbitmq.resume()
        await told(components, 15, fine)


async def test_a_rabbitmq_that_is_out_of_memory_is_not_ok_though_it_answers(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue
) -> None:
    async with watched(queue) as components:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0")
        try:
            assert (await told(components, 5, bad)).problem == SILENT
        finally:
            rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
        await told(components, 15, fine)


async def test_a_rabbitmq_that_refuses_the_password_says_so_without_it(rabbitmq: RunningRabbitMQ) -> None:
    queue = CeleryQueue(rabbitmq.url.replace("guest:guest", "guest:hunter2"))
    async with aclosing(queue), watched(queue) as components:
        found = await told(components, 10, lambda found: found.problem != SILENT)

    assert found.problem == "RabbitMQ refuses the user name or password."


async def test_messages_that_wait_and_those_that_are_dead_are_counted(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue
) -> None:
    await send(rabbitmq, BULK, 3)
    await send(rabbitmq, DEAD, 2)

    async with watched(queue) as components:
        counted = OK | {"bulk": 3, "dead": 2}
        await told(components, 5, lambda found: found.counts == counted)  # quorum queues tell a little late
        metrics = await Metrics(FakeJobStore(), lambda: components.condition("it"), time.time)()

    families = {each.name: each for each in text_string_to_metric_families(metrics.decode())}
    (sample,) = families["dispatcher_dead_letters"].samples
    assert sample.value == 2.0
    waiting = families["dispatcher_queue_waiting"].samples
    assert {each.labels["priority"]: each.value for each in waiting} == {"interactive": 0.0, "bulk": 3.0}


async def test_a_rabbitmq_that_is_killed_is_told_and_so_is_that_it_came_back(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue
) -> None:
    async with watched(queue) as components:
        assert (await told(components, 0, fine)).counts == OK

        await asyncio.to_thread(rabbitmq.kill)
        found = await told(components, 5, bad)
        assert found.problem == "RabbitMQ cannot be reached, or closed the connection."

        await asyncio.to_thread(rabbitmq.start)
        await told(components, 10, fine)


async def test_dead_letters_are_not_told_while_rabbitmq_does_not_tell() -> None:
    queue = CeleryQueue("amqp://guest:guest@127.0.0.1:1/")
    async with aclosing(queue):
        metrics = await Metrics(FakeJobStore(), queue.condition, time.time)()

    assert b"dispatcher_jobs_up 1.0" in metrics
    assert b"dead_letters" not in metrics


@contextmanager
def no_room(path: Path) -> Iterator[None]:
    """This file cannot grow, as on a disk that is full; nor can any other that is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_file_that_can_be_read_and_not_written_is_not_ok(tmp_path: Path) -> None:
    store = await SqliteJobs.open(tmp_path / "jobs.sqlite")
    async with aclosing(store), watched(store) as components:
        await told(components, 0, fine)
        with no_room(tmp_path / "jobs.sqlite-wal"):
            assert (await told(components, 3, bad)).problem == "The jobs' database fails: disk I/O error."
            assert (await store.backlog(bulk=True)).jobs == 0
        assert (await told(components, 3, fine)).counts == {"interactive": 0, "bulk": 0}


async def test_a_file_that_is_held_by_a_stranger_is_told_in_time(tmp_path: Path) -> None:
    store = await SqliteJobs.open(tmp_path / "jobs.sqlite")
    async with aclosing(store), watched(store) as components:
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)) as stranger:
            stranger.execute("BEGIN IMMEDIATE")
            assert (await told(components, 0, bad)).problem == SILENT
            stranger.execute("ROLLBACK")
        await told(components, 5, fine)


async def test_a_redis_that_is_killed_or_hangs_is_told_and_so_is_that_it_came_back(
    own_redis: RunningRedis,
) -> None:
    redis = RedisConnection(own_redis.url, observe=lambda _: None, timeout=0.2)
    async with aclosing(redis), watched(redis) as components:
        await told(components, 0, fine)

        own_redis.pause()
        await told(components, 5, lambda found: found.problem == SLOW)
        own_redis.resume()
        await told(components, 5, fine)

        own_redis.pause()
        await told(components, 5, lambda found: found.problem == SLOW)
        await asyncio.to_thread(own_redis.kill)
        await told(components, 5, lambda found: found.problem == GONE)
        await asyncio.to_thread(own_redis.start)
        await told(components, 5, fine)


async def test_a_redis_with_too_much_to_do_is_slow_whatever_was_wrong_before(own_redis: RunningRedis) -> None:
    await asyncio.to_thread(own_redis.kill)
    redis = RedisConnection(own_redis.url, observe=lambda _: None, timeout=0.2, most_waiting=0)
    async with aclosing(redis), watched(redis) as components:
        assert (await told(components, 0, bad)).problem == GONE
        await asyncio.to_thread(own_redis.start)
        await told(components, 5, lambda found: found.problem == SLOW)


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway without a model server: nobody listens at port 1."""
    app = create_app()
    async with build(settings) as app.state.gateway:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


def settings_for(redis: RunningRedis, jobs: JobsSettings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")
    return Settings(
        servers={"local": ServerSettings(url="http://127.0.0.1:1")},
        redis=RedisSettings(url=redis.url),
        jobs=jobs,
    )


async def test_a_redis_that_can_be_read_and_not_written_is_not_ok_for_jobs(own_redis: RunningRedis) -> None:
    redis = RedisConnection(own_redis.url, observe=lambda _: None, timeout=3.0)
    store = RedisJobs(redis)
    async with aclosing(redis), aclosing(store), watched(store) as components:
        assert (await told(components, 0, fine)).counts == {"interactive": 0, "bulk": 0}

        await redis.call([("CONFIG", "SET", "maxmemory", 1)])
        assert (await told(components, 3, bad)).problem == "Redis has no room for more jobs."
        await redis.call([("CONFIG", "SET", "maxmemory", 0)])
        await told(components, 3, fine)

        await redis.call([("REPLICAOF", "127.0.0.1", 1)])
        assert (await told(components, 3, bad)).problem == "This Redis is a replica, and takes no jobs."
        await redis.call([("REPLICAOF", "NO", "ONE")])
        await told(components, 3, fine)
        assert (await redis.call([("DBSIZE",)])) == [0]  # asking has left nothing behind


async def test_a_gateway_whose_jobs_cannot_be_kept_says_which_part_is_down_and_predictions_do_not_mind(
    own_redis: RunningRedis,
    rabbitmq: RunningRabbitMQ,
    queue: CeleryQueue,  # noqa: ARG001  (it has emptied RabbitMQ)
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jobs = JobsSettings(redis=own_redis.url, broker=rabbitmq.url)
    async with gateway(settings_for(own_redis, jobs, monkeypatch)) as client:
        up = await until(client, "ok", "ok")
        metrics = (await client.get("/metrics")).text
        rabbitmq.pause()
        no_queue = await until(client, "ok", SILENT)
        rabbitmq.resume()
        await until(client, "ok", "ok")
        await asyncio.to_thread(own_redis.kill)
        no_store = await until(client, GONE, "ok")

    assert up["components"]["jobs"]["counts"] == {"interactive": 0, "bulk": 0}
    assert up["components"]["queue"]["counts"] == OK
    assert "dispatcher_dead_letters 0.0" in metrics
    for report in (up, no_queue, no_store):
        del report["components"]
    assert up == no_queue == no_store


async def until(client: httpx.AsyncClient, jobs: str, queue: str) -> dict[str, Any]:
    """What is told once both are so; every answer comes in time."""
    give_up = time.monotonic() + 15
    while True:
        begun = time.monotonic()
        report: dict[str, Any] = (await client.get("/health")).json()
        assert time.monotonic() - begun < IN_TIME
        if [report["components"][name]["state"] for name in ("jobs", "queue")] == [jobs, queue]:
            return report
        assert time.monotonic() < give_up, report
        await asyncio.sleep(0.1)


async def test_a_gateway_whose_cache_is_down_says_so_and_nothing_else_changes(
    own_redis: RunningRedis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(own_redis, JobsSettings(path=tmp_path / "jobs.sqlite"), monkeypatch)
    async with gateway(settings) as client:
        before = (await client.get("/health")).json()
        assert "dispatcher_cache_unanswered_total 0.0" in (await client.get("/metrics")).text
        await asyncio.to_thread(own_redis.kill)
        async with asyncio.timeout(5):
            while (after := (await client.get("/health")).json()) == before:  # noqa: ASYNC110  (of another process)
                await asyncio.sleep(0.1)

    assert before["components"]["cache"] == {"state": "ok", "counts": {}}
    assert after["components"].pop("cache")["state"].startswith("Redis ")
    del before["components"]["cache"]
    assert after == before
    assert list(after["components"]) == ["jobs", "queue"]
