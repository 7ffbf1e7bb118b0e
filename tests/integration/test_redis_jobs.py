"""What only a Redis does with jobs: it loses answers and scripts, is full, evicts, and is shared by many."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from domain.errors import QueueUnavailable
from domain.job import Chunk, JobStatus
from domain.ports import Change, Created, IdempotencyKey, NewJob, Search
from domain.prediction import ModelRef
from infrastructure.redis_connection import RedisConnection
from infrastructure.redis_job_scripts import AT_ONCE, MOST_BYTES
from infrastructure.redis_jobs import RedisJobs
from infrastructure.redis_subscription import RedisSubscription
from tests.integration.recorded_jobs import NOW, begun, finished, job
from tests.integration.redis_job_store import BACK_AGAIN, SLACK, TIMEOUT, fails_within, storing
from tests.integration.test_redis import eventually

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.integration.redis_server import RunningRedis


# --- of many who ask


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
        assert [each.id for each in (await store.page(Search(10))).jobs].count(new.id) == 1


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
            page = await store.page(Search(10, before, model="rare"))
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
        assert [each.id for each in (await store.page(Search(10))).jobs] == ["c"]
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
