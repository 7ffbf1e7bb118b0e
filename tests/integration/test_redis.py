"""What only a Redis can do to us: be shared, slow, full, locked, gone and back."""

from __future__ import annotations

import asyncio
import os
import secrets
import struct
import subprocess
import time
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from redis import Redis

from domain.events import CacheFound, CacheLost
from infrastructure.redis_cache import RedisCache
from infrastructure.redis_connection import MOST_WAITING, RedisConnection
from infrastructure.redis_leases import LONGEST_WAIT, RedisLeases
from infrastructure.torchserve.process import free_ports
from tests.integration.redis_server import RunningRedis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from domain.events import Event

TIMEOUT = 0.05  # seconds; more than the adapters' own, as two cores are shared by many here
SLACK = 0.05  # what the machine may take longer


def key(i: int = 0) -> bytes:
    return i.to_bytes(16, "big")


@asynccontextmanager
async def connected(
    url: str, heard: list[Event] | None = None, seconds: float = TIMEOUT
) -> AsyncIterator[RedisConnection]:
    observe = (heard if heard is not None else []).append
    connection = RedisConnection(url, observe=observe, timeout=seconds)
    await connection.connect()
    try:
        yield connection
    finally:
        await connection.aclose()


@asynccontextmanager
async def leasing(url: str, ttl: float = 30.0, prefix: bytes = b"l:") -> AsyncIterator[RedisLeases]:
    async with connected(url) as connection:
        leases = RedisLeases(connection, ttl=ttl, prefix=prefix)
        try:
            yield leases
        finally:
            await leases.aclose()


async def eventually(true: Callable[[], Any], what: str, seconds: float = 10.0) -> float:
    """The seconds until `true`, which may be asynchronous; fails with `what` when it took too long."""
    begun = time.monotonic()
    while True:
        answer = true()
        if await answer if asyncio.iscoroutine(answer) else answer:
            return time.monotonic() - begun
        assert time.monotonic() - begun < seconds, f"{what} did not happen within {seconds} s"
        await asyncio.sleep(0.01)


@pytest.fixture
def server(redis: RunningRedis) -> Iterator[Redis]:
    """The shared Redis behind the adapters' back, empty."""
    with Redis(port=redis.port) as client:
        client.flushall()
        yield client


@pytest.fixture
async def cache(redis: RunningRedis, server: Redis) -> AsyncIterator[RedisCache]:
    assert server.ping()
    async with connected(redis.url) as connection:
        yield RedisCache(connection)


async def value(cache: RedisCache, i: int = 0) -> Any:
    (found,) = await cache.get((key(i),))
    return found and found.prediction


# --- the cache


async def test_what_is_asked_in_one_turn_travels_in_one_command(cache: RedisCache, server: Redis) -> None:
    await cache.put({key(i): i for i in range(64)}, 60.0)
    server.config_resetstat()

    answers = await asyncio.gather(*(cache.get((key(2 * i), key(2 * i + 1))) for i in range(32)))

    assert [each and each.prediction for pair in answers for each in pair] == list(range(64))
    assert server.info("commandstats")["cmdstat_mget"]["calls"] == 1


async def test_every_key_expires_in_redis_itself(cache: RedisCache, server: Redis) -> None:
    await cache.put({key(i): i for i in range(5)}, 60.0)
    assert await value(cache) == 0

    remaining = [server.pttl(name) for name in server.scan_iter("dispatcher:p:*")]

    assert len(remaining) == 5
    assert all(50_000 < each <= 60_000 for each in remaining)


async def test_large_predictions_are_compressed_where_that_helps(cache: RedisCache, server: Redis) -> None:
    incompressible = secrets.token_urlsafe(3000)
    await cache.put({key(1): "short " * 10, key(2): "long " * 1000, key(3): incompressible}, 60.0)

    assert await value(cache, 3) == incompressible
    sizes = [server.strlen(b"dispatcher:p:" + key(i)) for i in (1, 2, 3)]
    assert (sizes[0], sizes[1] < 200, sizes[2] < 4100) == (60 + 2 + 9, True, True)


FRESH = struct.pack("<d", 4e9)


@pytest.mark.parametrize(
    "garbage",
    [
        *(b"", b"1", b"1" + FRESH[:7], b"1" + FRESH, b"1" + FRESH + b"{", b"9" + FRESH + b"1"),
        *(b"2" + FRESH + b"1", b"2" + FRESH + zlib.compress(b"[1,")[:-6], b"\xff" * 40, b'{"label":"x"}'),
        b"1" + struct.pack("<d", float("nan")) + b"1",
        b"2" + FRESH + zlib.compress(b"[" + b"1," * 10_000_000 + b"1]"),
    ],
    ids=range(12),
)
async def test_what_is_not_ours_is_a_miss(cache: RedisCache, server: Redis, garbage: bytes) -> None:
    server.set(b"dispatcher:p:" + key(1), garbage)
    server.rpush(b"dispatcher:p:" + key(2), "a list")
    await cache.put({key(3): "ours"}, 60.0)

    found = await cache.get((key(1), key(2), key(3)))

    assert [each and each.prediction for each in found] == [None, None, "ours"]


async def test_processes_share_what_one_of_them_put(cache: RedisCache, redis: RunningRedis) -> None:
    async with connected(redis.url) as another:
        await cache.put({key(): {"label": "positive"}}, 60.0)
        await value(cache)

        assert await value(RedisCache(another)) == {"label": "positive"}


async def test_a_cancelled_caller_changes_nobodys_answer(cache: RedisCache) -> None:
    await cache.put({key(i): i for i in range(30)}, 60.0)
    for _ in range(10):
        asked = [asyncio.ensure_future(value(cache, i)) for i in range(30)]
        await asyncio.sleep(0)
        for each in asked[::3]:
            each.cancel()

        answers = await asyncio.gather(*asked, return_exceptions=True)

        assert [a for a in answers if not isinstance(a, BaseException)] == [i for i in range(30) if i % 3]


async def test_what_was_put_last_is_stored_before_the_connection_closes(
    server: Redis, redis: RunningRedis
) -> None:
    async with connected(redis.url) as connection:
        await RedisCache(connection).put({key(): "last"}, 60.0)

    assert server.exists(b"dispatcher:p:" + key())


async def test_a_closed_connection_is_gone_and_answers_nothing(server: Redis, redis: RunningRedis) -> None:
    async with connected(redis.url) as connection, leasing(redis.url) as leases:
        await leases.wait((key(),))
        await eventually(lambda: len(clients(server)) == 3, "the three connections")
    await leases.wait((key(),))

    assert (await RedisCache(connection).get((key(),)), await connection.connect()) == ([None], False)
    await eventually(lambda: not clients(server), "the end of all connections")
    assert len(asyncio.all_tasks()) == 1


def clients(server: Redis) -> list[Any]:
    return [each for each in server.client_list() if each["name"] == "model-dispatcher"]


# --- when it is slow, or gone


async def test_a_redis_that_is_down_from_the_start_is_lost_once_and_found_later(
    own_redis: RunningRedis,
) -> None:
    own_redis.kill()
    heard: list[Event] = []
    async with connected(own_redis.url, heard) as connection:
        cache = RedisCache(connection)
        assert (await cache.get((key(),)), await cache.put({key(): 1}, 60.0)) == ([None], False)
        assert cache.unanswered == 1
        await eventually(lambda: heard, "the loss")
        await asyncio.sleep(0.4)  # two more attempts
        own_redis.start()
        await eventually(lambda: len(heard) == 2, "that it was found", 2.0)

        assert await cache.put({key(): 1}, 60.0)
        assert await value(cache) == 1
        assert cache.unanswered == 1
    assert heard == [CacheLost("Redis cannot be reached, or closed the connection."), CacheFound()]


async def test_a_redis_killed_in_mid_traffic_costs_hits_only(own_redis: RunningRedis) -> None:
    heard: list[Event] = []
    slowest, stopped = 0.0, False
    async with connected(own_redis.url, heard) as connection:
        cache = RedisCache(connection)

        async def caller(i: int) -> None:
            nonlocal slowest
            while not stopped:
                begun = time.monotonic()
                assert await value(cache, i) in {i, None}
                await cache.put({key(i): i}, 60.0)
                slowest = max(slowest, time.monotonic() - begun)
                await asyncio.sleep(0.001)

        callers = asyncio.gather(*(caller(i) for i in range(32)))
        await eventually(lambda: value(cache, 31), "a hit")
        await asyncio.to_thread(own_redis.kill)
        await eventually(lambda: heard, "the loss")
        await asyncio.to_thread(own_redis.start)
        assert await eventually(lambda: len(heard) == 2, "that it was found") < 1.5
        await eventually(lambda: value(cache, 31), "a hit again")
        stopped = True
        await callers

    assert [type(event) for event in heard] == [CacheLost, CacheFound]
    assert slowest < TIMEOUT + SLACK


async def test_a_redis_that_hangs_is_waited_for_once(own_redis: RunningRedis) -> None:
    heard: list[Event] = []
    async with connected(own_redis.url, heard) as connection:
        cache = RedisCache(connection)
        own_redis.pause()
        begun = time.monotonic()
        assert await asyncio.gather(*(value(cache, i) for i in range(32))) == [None] * 32
        assert TIMEOUT / 2 < time.monotonic() - begun < TIMEOUT + SLACK

        slowest = 0.0
        while not heard:
            begun = time.monotonic()
            assert await value(cache) is None
            slowest = max(slowest, time.monotonic() - begun)
            await asyncio.sleep(0.001)
        own_redis.resume()
        await eventually(lambda: len(heard) == 2, "that it was found", 2.5)

    assert slowest < SLACK
    assert heard == [CacheLost("Redis did not answer in time."), CacheFound()]


async def test_a_late_answer_is_never_taken_for_anothers(own_redis: RunningRedis) -> None:
    async with connected(own_redis.url) as connection:
        cache = RedisCache(connection)
        await cache.put({key(i): i for i in range(10)}, 60.0)
        assert await value(cache, 9) == 9
        own_redis.pause()
        assert await value(cache, 1) is None
        own_redis.resume()

        await eventually(lambda: value(cache, 2), "a hit")

        assert await asyncio.gather(*(value(cache, i) for i in range(10))) == list(range(10))


async def test_no_more_wait_for_a_slow_redis_than_are_allowed_to(own_redis: RunningRedis) -> None:
    async with connected(own_redis.url, seconds=1.0) as connection:
        cache = RedisCache(connection)
        own_redis.pause()
        under_way = [asyncio.ensure_future(value(cache, i)) for i in range(MOST_WAITING)]
        await asyncio.sleep(0.02)
        waiting = [asyncio.ensure_future(value(cache, i)) for i in range(MOST_WAITING + 500)]

        await eventually(lambda: sum(each.done() for each in waiting) == 500, "500 misses", 0.5)

        assert not await cache.put({key(): 1}, 60.0)
        assert set(await asyncio.gather(*under_way, *waiting)) == {None}


async def test_a_busy_loop_does_not_make_redis_look_slow(cache: RedisCache) -> None:
    await cache.put({key(): 1}, 60.0)
    asked = asyncio.ensure_future(value(cache))
    for _ in range(4):  # until the question is out
        await asyncio.sleep(0)
    time.sleep(3 * TIMEOUT)  # noqa: ASYNC251  on purpose

    assert await asked == 1


async def test_a_full_redis_still_answers(own_redis: RunningRedis) -> None:
    heard: list[Event] = []
    async with connected(own_redis.url, heard) as connection:
        cache = RedisCache(connection)
        await cache.put({key(1): 1}, 60.0)
        assert await value(cache, 1) == 1
        with Redis(port=own_redis.port) as server:
            server.config_set("maxmemory", "1")
        for _ in range(3):
            await cache.put({key(2): 2}, 60.0)

            assert (await value(cache, 1), await value(cache, 2)) == (1, None)
    assert heard == []


# --- who may, and over what


WRITER = ("writer", "on", ">w", "~*", "&*", "+@all", "-mget")


@pytest.fixture
def locked_redis(tmp_path: Path) -> Iterator[RunningRedis]:
    """Asks for the password "s3cret/@:%"; the user "writer" may do all but read."""
    options = ("--requirepass", "s3cret/@:%", "--user", *WRITER)
    running = RunningRedis(tmp_path, options)
    running.start()
    yield running
    running.stop()


@pytest.mark.parametrize(
    ("user", "reason"),
    [
        ("", "Redis refuses the user name or password."),
        (":wr0ng@", "Redis refuses the user name or password."),
        ("writer:w@", "Redis refuses to be read by this user, or now."),
    ],
)
async def test_a_redis_that_refuses_us_is_lost_and_no_password_told(
    locked_redis: RunningRedis, user: str, reason: str
) -> None:
    heard: list[Event] = []
    url = f"redis://{user}127.0.0.1:{locked_redis.port}"
    async with connected(url, heard) as connection:
        assert await value(RedisCache(connection)) is None
        await eventually(lambda: heard, "the loss")

        assert "wr0ng" not in repr(connection)
    assert heard == [CacheLost(reason)]


async def test_the_password_and_the_database_of_the_url_are_used(locked_redis: RunningRedis) -> None:
    url = f"redis://:s3cret%2F%40%3A%25@127.0.0.1:{locked_redis.port}/3"
    async with connected(url) as connection:
        await RedisCache(connection).put({key(): 1}, 60.0)

        assert await value(RedisCache(connection)) == 1
    with Redis(port=locked_redis.port, password="s3cret/@:%", db=3) as server:
        assert server.dbsize() == 1


@pytest.mark.parametrize(
    "url", ["redis://:s3/cret@h:6379", "http://:s3cret@h", "redis://:s3cret@h?db=x", "s3cret"]
)
def test_a_wrong_url_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match="not the URL of a Redis") as refusal:
        RedisConnection(url, observe=lambda _: None)

    assert "s3" not in str(refusal.value)
    assert refusal.value.__suppress_context__


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """That of localhost, beside its key.pem; nobody vouches for it."""
    openssl = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    subject = "-subj /CN=localhost -addext subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = f"{openssl} {subject} -keyout key.pem -out cert.pem".split()
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "cert.pem"


async def test_redis_is_reached_over_tls_and_over_a_unix_socket(tmp_path: Path, certificate: Path) -> None:
    (tls_port,) = free_ports([0])
    files = ("--tls-cert-file", "cert.pem", "--tls-key-file", "key.pem", "--tls-auth-clients", "no")
    running = RunningRedis(tmp_path, ("--tls-port", str(tls_port), *files, "--unixsocket", "redis.sock"))
    running.start()
    try:
        for url, usable in (
            (f"rediss://127.0.0.1:{tls_port}?ssl_ca_certs={certificate}", True),
            (f"rediss://127.0.0.1:{tls_port}", False),  # nobody vouches for it
            (f"unix://{tmp_path}/redis.sock", True),
        ):
            async with connected(url, seconds=1.0) as connection:
                assert await connection.connect() is usable, url
    finally:
        running.stop()


# --- leases


async def test_of_several_processes_one_gets_the_lease(redis: RunningRedis) -> None:
    keys = [os.urandom(16) for _ in range(3)]
    async with leasing(redis.url) as a, leasing(redis.url) as b:
        assert await a.take(keys[:2]) == set(keys[:2])
        assert await b.take(keys) == {keys[2]}
        assert await a.take(keys) == frozenset()
        assert await a.take(()) == frozenset()

        await a.give_back(keys[:1])
        await a.take(())
        await eventually(lambda: b.take(keys[:1]), "that the lease is free")


async def test_nobody_ends_a_lease_that_another_holds(redis: RunningRedis) -> None:
    k = os.urandom(16)
    async with (
        leasing(redis.url, ttl=0.05) as late,
        leasing(redis.url) as holder,
        leasing(redis.url) as third,
    ):
        assert await late.take((k,)) == {k}
        await eventually(lambda: holder.take((k,)), "the end of the first lease")

        await late.give_back((k,))
        await third.give_back((k,))
        assert await late.take((k,)) == frozenset()  # travels after both

        assert await third.take((k,)) == frozenset()


async def test_the_lease_of_a_dead_holder_ends_by_itself_and_its_waiters_notice(redis: RunningRedis) -> None:
    k = os.urandom(16)
    async with leasing(redis.url, ttl=0.3) as dead:
        assert await dead.take((k,)) == {k}
    async with leasing(redis.url, ttl=0.3) as heir:
        begun = time.monotonic()
        while not await heir.take((k,)):
            await heir.wait((k,))

        assert time.monotonic() - begun < 0.3 + LONGEST_WAIT + SLACK


async def test_who_waits_is_woken_by_a_hint(redis: RunningRedis) -> None:
    keys = [os.urandom(16) for _ in range(2)]
    async with leasing(redis.url) as holder, leasing(redis.url) as waiter:
        await waiter.wait(keys)  # free: returns at once, and listens from now on
        await holder.take(keys)
        await settled(waiter, keys)
        waits = asyncio.ensure_future(waiter.wait(keys))
        await asyncio.sleep(0.02)
        assert not waits.done()

        await holder.give_back(keys[1:])

        assert await eventually(waits.done, "the hint", 1.0) < LONGEST_WAIT / 2
        assert await waiter.take(keys) == {keys[1]}


async def settled(waiter: RedisLeases, keys: list[bytes]) -> None:
    """Until it listens: when it begins to, it wakes everybody once."""

    async def waited_to_the_end() -> bool:
        begun = time.monotonic()
        await waiter.wait(keys)
        return time.monotonic() - begun > LONGEST_WAIT / 2

    await eventually(waited_to_the_end, "a wait to its end")


async def test_without_a_hint_a_wait_is_short(redis: RunningRedis) -> None:
    k = os.urandom(16)
    async with leasing(redis.url) as holder, leasing(redis.url) as waiter:
        await holder.take((k,))
        await settled(waiter, [k])
        begun = time.monotonic()

        await waiter.wait((k,))

        assert LONGEST_WAIT / 2 < time.monotonic() - begun < LONGEST_WAIT + SLACK


async def test_hints_are_heard_again_after_the_connection_broke(redis: RunningRedis, server: Redis) -> None:
    k = os.urandom(16)
    async with leasing(redis.url) as holder, leasing(redis.url) as waiter:
        await holder.take((k,))
        await settled(waiter, [k])
        server.client_kill_filter(_type="pubsub")
        await eventually(lambda: server.pubsub_numsub("l:given-back")[0][1] == 0, "the break")
        await eventually(lambda: server.pubsub_numsub("l:given-back")[0][1] == 1, "listening again")
        await settled(waiter, [k])
        waits = asyncio.ensure_future(waiter.wait((k,)))
        await asyncio.sleep(0.02)

        await holder.give_back((k,))

        assert await eventually(waits.done, "the hint", 1.0) < LONGEST_WAIT / 2


async def test_who_is_cancelled_while_it_takes_a_lease_does_not_hold_it(redis: RunningRedis) -> None:
    k = os.urandom(16)
    async with leasing(redis.url) as cancelled, leasing(redis.url) as other:
        for turns in range(6):
            takes = asyncio.ensure_future(cancelled.take((k,)))
            for _ in range(turns):
                await asyncio.sleep(0)
            takes.cancel()
            await asyncio.wait([takes])
            await cancelled.take(())

            await eventually(lambda: other.take((k,)), "that the lease is free", 1.0)
            await other.give_back((k,))


async def test_without_redis_everybody_gets_every_lease_and_nobody_waits(own_redis: RunningRedis) -> None:
    keys = [os.urandom(16) for _ in range(2)]
    async with leasing(own_redis.url) as a, leasing(own_redis.url) as b:
        assert await a.take(keys) == set(keys)
        own_redis.kill()
        begun = time.monotonic()

        assert await b.take(keys) == set(keys)
        await b.wait(keys)
        await b.give_back(keys)

        assert time.monotonic() - begun < LONGEST_WAIT


async def test_whoever_waits_is_woken_when_it_ends(redis: RunningRedis) -> None:
    k = os.urandom(16)
    async with leasing(redis.url) as holder, leasing(redis.url) as waiter:
        await holder.take((k,))
        await settled(waiter, [k])
        waits = asyncio.ensure_future(waiter.wait((k,)))
        await asyncio.sleep(0.02)

    assert await eventually(waits.done, "the end", 1.0) < LONGEST_WAIT / 2
