"""Real servers beside TorchServe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import aio_pika
import pytest

from infrastructure.celery_messages import QUEUES
from infrastructure.celery_queue import CeleryQueue
from tests.integration.gate import Gate
from tests.integration.rabbitmq_server import RunningRabbitMQ
from tests.integration.redis_server import RunningRedis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A closed one; it is open for what is left of the test."""
    gate = Gate(tmp_path)
    yield gate
    gate.open()


@pytest.fixture(scope="session")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    """One for all tests that leave it running; what is stored there is theirs by their own keys."""
    running = RunningRedis(tmp_path_factory.mktemp("redis"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RunningRedis]:
    """One for a test that kills or pauses it."""
    running = RunningRedis(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRabbitMQ]:
    """One for all tests: it takes long to start, so who kills it starts it again."""
    running = RunningRabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def publish_timeout() -> float:
    """Seconds that `queue` waits for RabbitMQ; a file may say otherwise."""
    return 5.0


@pytest.fixture
async def queue(rabbitmq: RunningRabbitMQ, publish_timeout: float) -> AsyncIterator[CeleryQueue]:
    """One that finds everything empty."""
    queue = CeleryQueue(rabbitmq.url, timeout=publish_timeout)
    assert await queue.connect()
    async with await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        for name in QUEUES:
            await (await channel.get_queue(name)).purge()
    yield queue
    await queue.aclose()
