"""Leases in a Redis that several processes share."""

from __future__ import annotations

import asyncio
import math
import secrets
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from domain.fingerprint import SIZE
from infrastructure.redis_connection import CONNECT_TIMEOUT, disconnect

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio.connection import AbstractConnection

    from infrastructure.redis_connection import RedisConnection

LONGEST_WAIT = 0.25  # seconds until a lost hint or a dead holder is noticed
RESUBSCRIBE = 0.5  # seconds between two attempts

# Compare and delete: the tokens of KEYS follow the channel and the hint in ARGV.
GIVE_BACK = """
for i, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[i + 2] then redis.call('DEL', key) end
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
"""


class RedisLeases:
    """Leases of `ttl` seconds, which must be longer than the work takes that they are for: none is renewed.

    `SET NX PX` with a token of its own for every `take`, so that nobody ends what another holds
    (redis.io, "Distributed Locks with Redis"; on one Redis it is no more than a good guess, and suffices:
    at worst two do the same work). A hint over pub/sub wakes who waits; without it 0.25 s do.
    `aclose` is its owner's to call, before the connection's.
    """

    def __init__(self, redis: RedisConnection, *, ttl: float, prefix: bytes = b"dispatcher:l:") -> None:
        self._redis = redis
        self._ttl = ttl
        self._prefix = prefix
        self._channel = prefix + b"given-back"
        self._name = secrets.token_hex(8)
        self._takes = count()
        self._held: dict[bytes, str] = {}
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._closed = False

    async def take(self, fingerprints: Sequence[bytes]) -> frozenset[bytes]:
        token = f"{self._name}:{next(self._takes)}"
        milliseconds = max(1, int(self._ttl * 1000))
        commands = [("SET", self._prefix + each, token, "NX", "PX", milliseconds) for each in fingerprints]
        try:
            replies = await self._redis.call(commands)
        except asyncio.CancelledError:
            self._end(dict.fromkeys(fingerprints, token))
            raise
        if replies is None:
            granted = frozenset(fingerprints)
        else:
            granted = frozenset(each for each, said in zip(fingerprints, replies, strict=True) if said)
        self._held.update(dict.fromkeys(granted, token))
        return granted

    async def give_back(self, fingerprints: Sequence[bytes]) -> None:
        held = {each: self._held.pop(each) for each in fingerprints if each in self._held}
        self._end(held)

    async def wait(self, fingerprints: Sequence[bytes]) -> None:
        self._listen()
        hint = asyncio.get_running_loop().create_future()
        for each in fingerprints:
            self._waiting.setdefault(each, set()).add(hint)
        try:
            if await self._all_held(fingerprints):  # asked once we listen: else a hint could fall in between
                await asyncio.wait([hint], timeout=min(LONGEST_WAIT, self._ttl))
        finally:
            self._forget(fingerprints, hint)

    async def aclose(self) -> None:
        """Stop listening, and wake who waits."""
        self._closed = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        self._hint(list(self._waiting))

    async def _all_held(self, fingerprints: Sequence[bytes]) -> bool:
        replies = await self._redis.call([("EXISTS", *(self._prefix + each for each in fingerprints))])
        return replies == [len(fingerprints)]

    def _end(self, tokens: Mapping[bytes, str]) -> None:
        if tokens:
            keys = [self._prefix + each for each in tokens]
            hint = b"".join(tokens)
            self._redis.post([("EVAL", GIVE_BACK, len(keys), *keys, self._channel, hint, *tokens.values())])

    def _forget(self, fingerprints: Sequence[bytes], hint: asyncio.Future[None]) -> None:
        for each in fingerprints:
            hints = self._waiting.get(each, set())
            hints.discard(hint)
            if not hints:
                self._waiting.pop(each, None)

    def _hint(self, fingerprints: Sequence[bytes]) -> None:
        for each in fingerprints:
            for hint in self._waiting.get(each, ()):
                if not hint.done():
                    hint.set_result(None)

    def _listen(self) -> None:
        if self._listener is None and not self._closed:
            self._listener = asyncio.get_running_loop().create_task(self._hear())

    async def _hear(self) -> None:
        """Pass hints on as long as we live, over a connection of its own: one that listens can do no more."""
        connection = self._redis.another()
        try:
            while True:
                with suppress(RedisError, OSError):
                    await self._subscribe(connection)
                    while True:
                        _, _, hint = await connection.read_response(disable_decoding=True, timeout=math.inf)
                        self._hint([hint[i : i + SIZE] for i in range(0, len(hint), SIZE)])
                await disconnect(connection, nowait=True)
                await asyncio.sleep(RESUBSCRIBE)
        finally:
            await disconnect(connection)

    async def _subscribe(self, connection: AbstractConnection) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SUBSCRIBE", self._channel)
            await connection.read_response()
        self._hint(list(self._waiting))  # of theirs, some may have been given before
