"""Hearing what is published on a channel of Redis, as long as that can be heard."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from redis.exceptions import RedisError

from infrastructure.redis_connection import CONNECT_TIMEOUT, FIRST_BACKOFF, LONGEST_BACKOFF, disconnect

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

    from infrastructure.redis_connection import RedisConnection

SILENCE = 2.0  # seconds without a word until Redis is asked for one; after as many more it is given up


class RedisSubscription:
    """Calls `heard` with what is published on `channel`, from `start` to `aclose`.

    And with None whenever it has begun to listen, anew or for the first time: what was published before
    was missed. It has a connection of its own. A Redis that is gone is tried again with a back-off of
    0.1 to 1 s; one that hangs is noticed within twice `silence` seconds.
    """

    def __init__(
        self,
        redis: RedisConnection,
        channel: bytes,
        heard: Callable[[bytes | None], None],
        *,
        silence: float = SILENCE,
    ) -> None:
        self._redis = redis
        self._channel = channel
        self._heard = heard
        self._silence = silence
        self._listener: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to listen, unless that has begun; outside of an event loop nothing happens."""
        if self._listener is None and not self._closed:
            with suppress(RuntimeError):
                self._listener = asyncio.get_running_loop().create_task(self._hear())

    async def aclose(self) -> None:
        """Listen no more."""
        self._closed = True
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])

    async def _hear(self) -> None:
        connection = self._redis.another()
        pause = FIRST_BACKOFF
        try:
            while True:
                with suppress(RedisError, OSError):  # TimeoutError is one
                    await self._subscribe(connection)
                    pause = FIRST_BACKOFF
                    await self._listen(connection)
                await disconnect(connection, nowait=True)
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_BACKOFF)
        finally:
            await disconnect(connection)

    async def _subscribe(self, connection: AbstractConnection) -> None:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SUBSCRIBE", self._channel)
            await connection.read_response()
        self._heard(None)

    async def _listen(self, connection: AbstractConnection) -> None:
        """Until there is nothing more to hear. Raises RedisError, OSError."""
        asked = False
        while True:
            said = await connection.read_response(disable_decoding=True, timeout=self._silence)
            if said is None and asked:
                return
            asked = said is None
            if asked:
                await connection.send_command("PING")
            elif said[0] == b"message":
                self._heard(cast("bytes", said[2]))
