"""The connection to Redis that the adapters of one process share: pipelined, and never waited for long."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from redis.asyncio.connection import ConnectionPool
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from domain.events import CacheFound, CacheLost
from domain.ports import Condition
from infrastructure.redis_batch import Batch, Greeting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio.connection import AbstractConnection

    from domain.ports import Observer
    from infrastructure.redis_batch import Command, Replies, Values

CONNECT_TIMEOUT = 1.0  # seconds for TCP, TLS and AUTH together; nobody waits for it
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 1.0  # seconds
MOST_WAITING = 1024  # keys and commands of a cache, whose callers can do without
NO_GREETING = Greeting((), lambda _: None)
PROBE = b"dispatcher:probe"  # reading it is refused to whom reading is refused; PING is not

SLOW = "Redis did not answer in time."
REASONS = (
    (AuthenticationError, "Redis refuses the user name or password."),
    (BusyLoadingError, "Redis is still loading its data."),
    (ResponseError, "Redis refuses to be read by this user, or now."),
    (TimeoutError, SLOW),
    (RedisTimeoutError, SLOW),
    (RedisError, "Redis cannot be reached, or closed the connection."),
    (OSError, "Redis cannot be reached, or closed the connection."),
)


class RedisConnection:
    """Sends what many callers want in one round trip, the next when that is back. Its methods never raise.

    A caller waits `timeout` seconds at most; then the connection is given up, for everybody, so that no
    late answer is ever taken for another's. While there is no connection nobody waits at all: one task
    connects, with an exponential back-off of 0.1 to 1 s, greets what it has connected to, and probes it.
    `observe` hears CacheLost when that has failed, and CacheFound when it has succeeded again.
    Beside what is under way, `most_waiting` keys and commands may wait; where more do, Redis is too slow.
    Whoever makes it closes it. Raises ValueError unless `url` is of redis://, rediss:// or unix://.
    """

    def __init__(
        self,
        url: str,
        *,
        observe: Observer,
        timeout: float = 0.01,
        most_waiting: int = MOST_WAITING,
        greeting: Greeting = NO_GREETING,
    ) -> None:
        self._connections = _connections(url)
        self._observe = observe
        self._timeout = timeout
        self._most_waiting = most_waiting
        self._greeting = greeting
        self._waiting = Batch()
        self._wake: asyncio.Future[None] | None = None
        self._up = False
        self._lost = False
        self._failures = 0  # since Redis last did what we asked
        self._problem: str | None = None  # why there is no connection
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def another(self) -> AbstractConnection:
        """One more connection to the same Redis, not connected yet, for who listens on it."""
        return cast("AbstractConnection", self._connections.make_connection())  # type: ignore[no-untyped-call]

    async def connect(self) -> bool:
        """Whether Redis can be used, once that has been tried: at first, and when a connection broke."""
        self._start()
        if not self._closed:
            await self._tried.wait()
        return self._up

    async def read(self, keys: Sequence[bytes]) -> Values | None:
        """The values of `keys`, or None where Redis does not say."""
        if not keys:
            return []
        if not self._usable():
            return None
        values: asyncio.Future[Values | None] = asyncio.get_running_loop().create_future()
        self._batch().read(keys, values)
        return await values

    async def call(self, commands: Sequence[Command]) -> Replies | None:
        """The replies to `commands`, or None where there are none: then they may have been done, or not."""
        if not commands:
            return []
        if not self._usable():
            return None
        replies: asyncio.Future[Replies | None] = asyncio.get_running_loop().create_future()
        self._batch().write(commands, replies)
        return await replies

    def post(self, commands: Sequence[Command]) -> bool:
        """Send `commands`, before all that is asked for later, and do not wait; whether they are sent."""
        if not self._usable():
            return False
        if commands:
            self._batch().write(commands, None)
        return True

    async def condition(self) -> Condition:
        """As Component.condition; asked as a cache is, so it is slow where callers would have a miss."""
        if await self.connect() and await self.read([PROBE]) is not None:
            return Condition()
        return Condition(self._problem or SLOW)

    async def aclose(self) -> None:
        """Disconnect; what was posted is done first, if Redis does it in time."""
        if self._up:
            await self.read([PROBE])
        self._closed, self._up = True, False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _usable(self) -> bool:
        if self._up:
            return self._waiting.size < self._most_waiting
        self._start()
        return False

    def _start(self) -> None:
        if self._task is None and not self._closed:
            self._task = asyncio.get_running_loop().create_task(self._work())

    def _batch(self) -> Batch:
        """The one that leaves next."""
        batch = self._waiting
        if not batch.size:
            batch.since = asyncio.get_running_loop().time()
            if self._wake is not None and not self._wake.done():
                self._wake.set_result(None)
        return batch

    async def _work(self) -> None:
        connection = self.another()
        try:
            while True:
                try:
                    await self._open(connection)
                    await self._serve(connection)
                except Exception as error:  # noqa: BLE001  whatever it is, callers do without Redis
                    self._failed(error)
                await disconnect(connection, nowait=True)
                await asyncio.sleep(self._backoff())
        finally:
            self._up = False
            self._waiting.abandon()
            self._tried.set()
            await disconnect(connection)

    async def _open(self, connection: AbstractConnection) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await connection.connect()  # type: ignore[no-untyped-call]
        loop = asyncio.get_running_loop()
        probe, said = Batch(loop.time()), loop.create_future()
        probe.write(self._greeting.commands, said)
        probe.read([PROBE], None)
        await self._exchange(connection, probe)
        self._greeting.heard(said.result())
        self._up, self._problem = True, None
        self._tried.set()
        if self._lost:
            self._lost = False
            self._observe(CacheFound())

    async def _serve(self, connection: AbstractConnection) -> None:
        while True:
            if not self._waiting.size:
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
            batch, self._waiting = self._waiting, Batch()
            try:
                await self._exchange(connection, batch)
            finally:
                batch.abandon()
            self._failures = 0

    async def _exchange(self, connection: AbstractConnection, batch: Batch) -> None:
        """One round trip. Raises TimeoutError, RedisError or OSError; then the connection is of no use."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            # In two steps: if the loop itself was busy, what has arrived meanwhile is read in between.
            half = self._timeout / 2
            almost = loop.call_at(batch.since + half, lambda: limit.reschedule(loop.time() + half))
            try:
                await batch.travel(connection)
            finally:
                almost.cancel()

    def _failed(self, error: Exception) -> None:
        was_up, self._up = self._up, False
        self._problem = _reason(error)
        self._failures += 1
        self._waiting.abandon()
        self._waiting = Batch()
        if self._failures > 1 and not self._lost:  # one may be a hiccup, or a Redis that was restarted
            self._lost = True
            self._observe(CacheLost(self._problem))
        if was_up:
            self._tried.clear()  # it is tried again
        else:
            self._tried.set()

    def _backoff(self) -> float:
        if self._failures == 1:
            return 0.0
        return min(FIRST_BACKOFF * 2.0 ** min(self._failures - 2, 10), LONGEST_BACKOFF)


async def disconnect(connection: AbstractConnection, *, nowait: bool = False) -> None:
    """Close `connection`, whatever became of it; with `nowait` without waiting until that is done."""
    with suppress(RedisError, OSError):  # it is gone anyway
        await connection.disconnect(nowait=nowait)


def _connections(url: str) -> ConnectionPool:
    """Only makes connections, which are not returned to it: a pool would take longer than Redis."""
    try:
        return ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=CONNECT_TIMEOUT,
            driver_info=None,
            client_name="model-dispatcher",
        )
    except ValueError:
        raise ValueError(
            "not the URL of a Redis: redis[s]://[user:password@]host[:port][/database] or unix:///path"
        ) from None  # the cause quotes the URL, and with it the password


def _reason(error: Exception) -> str:
    """In our own words: those of Redis and of the network may name what is nobody's business."""
    return next(
        (said for kind, said in REASONS if isinstance(error, kind)), f"{type(error).__name__} at Redis."
    )
