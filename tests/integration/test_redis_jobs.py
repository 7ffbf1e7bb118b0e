"""What only a Redis can do to jobs: be killed, hang, be full, forget scripts, and be shared by many."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from redis import Redis

from bootstrap.jobs import open_shelf
from bootstrap.settings import JobsSettings
from domain.errors import QueueUnavailable
from domain.events import JobsAtRisk
from domain.job import Chunk, Job, JobStatus
from domain.ports import Change, Created, IdempotencyKey, NewJob
from domain.prediction import ModelRef
from infrastructure.redis_connection import CONNECT_TIMEOUT, LONGEST_BACKOFF, RedisConnection
from infrastructure.redis_durability import durability
from infrastructure.redis_job_scripts import AT_ONCE, MOST_BYTES
from infrastructure.redis_jobs import RedisJobs
from infrastructure.redis_subscription import RedisSubscription
from tests.integration.redis_server import RunningRedis
from tests.integration.test_redis import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence
    from pathlib import Path

    from domain.events import Event

TIMEOUT = 0.5  # seconds for one round trip
SLACK = 0.5  # what the machine may take longer
BACK_AGAIN = LONGEST_BACKOFF + CONNECT_TIMEOUT + SLACK
NOW = 1_700_000_000.0


@pytest.fixture
def durable_redis(tmp_path: Path) -> Iterator[RunningRedis]:
    """One that keeps what it has answered, whatever happens to it."""
    running = RunningRedis(tmp_path, ("--appendonly", "yes", "--appendfsync", "always"))
    running.start()
    yield running
    running.stop()


@asynccontextmanager
async def storing(redis: RunningRedis, **more: Any) -> AsyncIterator[RedisJobs]:
    connection = RedisConnection(redis.url, observe=list[Any]().append, timeout=TIMEOUT, **more)
    async with aclosing(connection), aclosing(RedisJobs(connection)) as store:
        yield store


def job(job_id: str = "a", **fields: Any) -> Job:
    times = {"created_at": NOW, "expires_at": NOW + 600, "retention": 3_600.0, "changed_at": NOW}
    values: dict[str, Any] = {"model": ModelRef("sentiment"), "total": 1, "chunk_size": 500}
    return Job(job_id, **(values | times | fields))


def begun(queued: Job) -> Job:
    changed = queued.begun(0, NOW + 1)
    assert changed is not None
    return changed


def finished(running: Job) -> Job:
    changed = running.chunk_finished(0, NOW + 2, failed=0, error=None, version="1.0")
    assert changed is not None
    return changed


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


async def fails_within(seconds: float, store: RedisJobs) -> None:
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        await store.load(["a"])
    assert time.monotonic() - began < seconds


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


class LosesAnswers(RedisConnection):
    """Does what it is asked, and then, once, does not say so."""

    lost = False

    async def call(self, commands: Sequence[Any]) -> list[object] | None:
        replies = await super().call(commands)
        if self.lost:
            return replies
        self.lost = True
        return None


async def test_what_was_done_without_an_answer_is_not_done_twice(redis: RunningRedis) -> None:
    new = job(str(uuid.uuid4()))
    connection = LosesAnswers(redis.url, observe=list[Any]().append, timeout=TIMEOUT)
    async with aclosing(connection), aclosing(RedisJobs(connection)) as store:
        connection.lost = True
        known = job(str(uuid.uuid4()))  # as the scripts are, from here on
        await store.create([NewJob(known, b"1")])
        await store.save([Change(begun(known))])
        answers: list[object] = []
        for ask in (
            lambda: store.create([NewJob(new, b"1")]),
            lambda: store.save([Change(begun(new))]),
            lambda: store.save([Change(begun(new))]),
        ):
            connection.lost = False
            answers.append(await ask())

        assert answers == [[Created(new.id)], [True], [False]]
        assert await store.create([NewJob(new, b"1")]) == [Created(new.id)]  # asked once more, and late
        assert await store.load([new.id]) == [begun(new)]
        assert [each.id for each in (await store.page(10)).jobs].count(new.id) == 1


async def test_of_two_that_change_a_job_at_once_one_does(redis: RunningRedis) -> None:
    async with storing(redis) as one, storing(redis) as other:
        for _ in range(50):
            new = job(str(uuid.uuid4()))
            await one.create([NewJob(new, b"1")])
            changes = [Change(begun(new))]

            won = await asyncio.gather(*(each.save(changes) for each in (one, other, one, other)))

            assert sorted(done for (done,) in won) == [False, False, False, True]


# --- full


async def test_a_full_redis_refuses_and_has_written_nothing(own_redis: RunningRedis) -> None:
    heard: list[Any] = []
    async with storing(own_redis) as store:
        store.listen(heard.append)
        await store.create([NewJob(job(), b"1")])
        await eventually(lambda: heard == [None], "listening")
        with Redis(port=own_redis.port) as server:
            server.config_set("maxmemory", "1")
            before = everything(server)
            for refused in (
                store.create([NewJob(job(each), b"1", IdempotencyKey("", each, "")) for each in "bc"]),
                store.put_instances([(Chunk("d", 0), b"1")]),
                store.save([Change(begun(job()))]),
            ):
                with pytest.raises(QueueUnavailable, match="no room"):
                    await refused
            assert everything(server) == before
            assert await store.load(["a"]) == [job()]

            await store.delete(["a"])
            assert server.keys() == [b"dispatcher:sequence"]
    assert heard in ([None], [None, ["a"]])


def everything(server: Any) -> dict[bytes, Any]:
    read = {b"hash": server.hgetall, b"zset": lambda key: server.zrange(key, 0, -1, withscores=True)}
    return {key: read.get(server.type(key), server.get)(key) for key in server.scan_iter()}


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


# --- many, large and long


async def test_scripts_that_redis_has_forgotten_are_told_again(redis: RunningRedis) -> None:
    new = job(str(uuid.uuid4()))
    async with storing(redis) as store:
        with Redis(port=redis.port) as server:
            server.script_flush()
            assert await store.create([NewJob(new, b"1")]) == [Created(new.id)]
            server.script_flush()
            assert await store.save([Change(begun(new))]) == [True]
            server.script_flush()
            await store.delete([new.id])
        assert await store.load([new.id]) == [None]


async def test_many_and_large_ones_travel_in_several_pieces(redis: RunningRedis) -> None:
    ids = [str(uuid.uuid4()) for _ in range(2 * AT_ONCE + 3)]
    large = b"x" * (MOST_BYTES // 2 + 1)
    async with storing(redis, most_waiting=100_000) as store:
        with Redis(port=redis.port) as server:
            server.config_resetstat()
            await store.create([NewJob(job(each), b"1") for each in ids])
            assert server.info("commandstats")["cmdstat_incrby"]["calls"] == 3
            assert [each and each.id for each in await store.load(ids)] == ids

            server.config_resetstat()
            await store.put_instances([(Chunk(ids[0], i), large) for i in range(10)])
            assert server.info("commandstats")["cmdstat_hset"]["calls"] == 10
            runs = [server.info("commandstats").get(f"cmdstat_{each}", {}) for each in ("eval", "evalsha")]
            assert sum(each.get("calls", 0) - each.get("failed_calls", 0) for each in runs) == 10
        assert await store.instances([Chunk(ids[0], i) for i in range(11)]) == [large] * 10 + [None]
        await store.delete(ids)
        assert set(await store.load(ids)) == {None}


async def test_chunks_without_a_job_expire_and_those_of_a_job_stay(redis: RunningRedis) -> None:
    new, lost = (job(str(uuid.uuid4()), total=1_000) for _ in range(2))
    async with storing(redis) as store:
        for each in (new, lost):
            await store.put_instances([(Chunk(each.id, i), b"1") for i in range(2)])
        await store.create([NewJob(new)])
        with Redis(port=redis.port) as server:
            assert server.ttl(f"dispatcher:j:{new.id}") == -1
            assert 86_000 < server.ttl(f"dispatcher:j:{lost.id}") <= 86_400
            await store.put_instances([(Chunk(new.id, 0), b"late")])
            assert server.ttl(f"dispatcher:j:{new.id}") == -1
        assert await store.instances([Chunk(new.id, 1), Chunk(lost.id, 1)]) == [b"1", b"1"]
        assert await store.load([new.id, lost.id]) == [new, None]


async def test_a_rare_model_is_found_over_several_pages(own_redis: RunningRedis) -> None:
    async with storing(own_redis) as store:
        await store.create([NewJob(job("rare", model=ModelRef("rare")), b"1")])
        await store.create([NewJob(job(str(i)), b"1") for i in range(2_500)])
        found, before, pages = list[str](), None, 0
        while pages == 0 or before is not None:
            page = await store.page(10, model="rare", before=before)
            found += [each.id for each in page.jobs]
            before, pages = page.next, pages + 1

        assert (found, pages) == (["rare"], 3)


async def test_what_is_no_text_names_no_job(redis: RunningRedis) -> None:
    async with storing(redis) as store:
        strange = ["\ud800", "*", "a\r\nDEL x", ""]
        await store.delete(strange)

        assert await store.load(strange) == [None] * 4


async def test_nothing_is_left_of_a_job_that_is_deleted(own_redis: RunningRedis) -> None:
    async with storing(own_redis) as store:
        key = IdempotencyKey("p", "k", "f")
        await store.create([NewJob(job(), b"1", key)])
        await store.save([Change(begun(job())), Change(finished(begun(job())), 0, b"2")])
        await store.delete(["a"])

    with Redis(port=own_redis.port) as server:
        assert server.keys() == [b"dispatcher:sequence"]


@pytest.mark.parametrize("status", list(JobStatus))
async def test_what_was_evicted_is_forgotten_for_good(own_redis: RunningRedis, status: JobStatus) -> None:
    async with storing(own_redis) as store:
        await store.create([NewJob(job(each, status=status, bulk=each == "b"), b"1") for each in "abc"])
        with Redis(port=own_redis.port) as server:
            server.delete("dispatcher:j:a", "dispatcher:j:b")
        due = await store.due(NOW + 1e6, 10)
        await store.delete([each for each in due if each != "c"])

        assert sorted(due) == ["a", "b", "c"]
        assert await store.due(NOW + 1e6, 10) == ["c"]
        assert [each.id for each in (await store.page(10)).jobs] == ["c"]
        await store.delete(["c"])

    with Redis(port=own_redis.port) as server:
        assert server.keys() == [b"dispatcher:sequence"]


# --- hints


async def test_another_process_hears_of_changes_and_that_it_missed_some(own_redis: RunningRedis) -> None:
    heard: list[Any] = []
    async with storing(own_redis) as store, storing(own_redis) as other:
        other.listen(heard.append)
        await eventually(lambda: heard == [None], "listening")
        await store.create([NewJob(job(each), b"1") for each in "ab"])
        await store.save([Change(begun(job("a"))), Change(begun(job("x"))), Change(begun(job("b")))])
        await eventually(lambda: heard == [None, ["a", "b"]], "the hint", 1.0)

        with Redis(port=own_redis.port) as server:
            server.client_kill_filter(_type="pubsub")
        await eventually(lambda: heard == [None, ["a", "b"], None], "listening again", 2.0)
        await asyncio.to_thread(own_redis.kill)
        await asyncio.to_thread(own_redis.start)
        await eventually(lambda: len(heard) == 4, "listening again", BACK_AGAIN)
        await other.create([NewJob(job("c"), b"1")])
        await other.save([Change(begun(job("c")))])
        await eventually(lambda: heard[3:] == [None, ["c"]], "the hint", 1.0)


async def test_a_listener_asks_whether_a_silent_redis_is_there(own_redis: RunningRedis) -> None:
    heard: list[Any] = []
    connection = RedisConnection(own_redis.url, observe=list[Any]().append)
    subscription = RedisSubscription(connection, b"c", heard.append, silence=0.1)
    async with aclosing(connection), aclosing(subscription):
        subscription.start()
        await eventually(lambda: heard == [None], "listening")
        await asyncio.sleep(0.5)  # it answers: nothing happens
        assert heard == [None]

        own_redis.pause()
        await asyncio.sleep(0.2 + SLACK)
        own_redis.resume()
        await eventually(lambda: heard == [None, None], "listening again", BACK_AGAIN)


async def test_a_closed_store_is_gone(own_redis: RunningRedis) -> None:
    async with storing(own_redis) as store:
        store.listen(list[Any]().append)
        await store.load(["a"])
    await fails_within(SLACK, store)

    with Redis(port=own_redis.port) as server:
        await eventually(lambda: len(server.client_list()) == 1, "the end of all connections")
    assert len(asyncio.all_tasks()) == 1


def test_who_listens_before_there_is_a_loop_hears_from_the_first_call_on(redis: RunningRedis) -> None:
    heard: list[Any] = []
    connection = RedisConnection(redis.url, observe=list[Any]().append, timeout=TIMEOUT)
    store = RedisJobs(connection)
    store.listen(heard.append)

    async def later() -> None:
        async with aclosing(connection), aclosing(store):
            await store.load(["a"])
            await eventually(lambda: heard == [None], "listening")

    asyncio.run(later())
