"""A store of jobs in a Redis of the tests, which is not waited for long."""

from __future__ import annotations

import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from domain.errors import QueueUnavailable
from infrastructure.redis_connection import CONNECT_TIMEOUT, LONGEST_BACKOFF, RedisConnection
from infrastructure.redis_jobs import RedisJobs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.redis_server import RunningRedis

TIMEOUT = 0.5  # seconds for one round trip
SLACK = 0.5  # what the machine may take longer
BACK_AGAIN = LONGEST_BACKOFF + CONNECT_TIMEOUT + SLACK


@asynccontextmanager
async def storing(redis: RunningRedis, **more: Any) -> AsyncIterator[RedisJobs]:
    connection = RedisConnection(redis.url, observe=list[Any]().append, timeout=TIMEOUT, **more)
    async with aclosing(connection), aclosing(RedisJobs(connection)) as store:
        yield store


async def fails_within(seconds: float, store: RedisJobs) -> None:
    began = time.monotonic()
    with pytest.raises(QueueUnavailable):
        await store.load(["a"])
    assert time.monotonic() - began < seconds
