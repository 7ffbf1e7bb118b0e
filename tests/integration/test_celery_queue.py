"""Jobs on their way through RabbitMQ: what is confirmed is there, and what is not is refused in time."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from domain.errors import QueueUnavailable
from domain.job import Chunk
from infrastructure import rabbitmq_connection
from infrastructure.celery_app import celery_app
from infrastructure.celery_messages import BULK, DEAD, DELIVERIES, INTERACTIVE, TASK
from infrastructure.celery_queue import CeleryQueue
from infrastructure.rabbitmq_connection import LOST

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

    from tests.integration.rabbitmq_server import RunningRabbitMQ

TIMEOUT = 1.0
IN_TIME = 4.0  # seconds: far from TIMEOUT, and less than anything else that could end a wait


@asynccontextmanager
async def open_channel(url: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(url) as connection:
        yield await connection.channel()


@pytest.fixture
def publish_timeout() -> float:
    return TIMEOUT


@pytest.fixture
async def channel(rabbitmq: RunningRabbitMQ, queue: CeleryQueue) -> AsyncIterator[AbstractChannel]:  # noqa: ARG001
    """The test's own, to see what RabbitMQ has."""
    async with open_channel(rabbitmq.url) as channel:
        yield channel


async def take(channel: AbstractChannel, name: str) -> AbstractIncomingMessage:
    queue = await channel.get_queue(name)
    async with asyncio.timeout(15):  # a dead letter takes a moment
        while (message := await queue.get(fail=False)) is None:  # noqa: ASYNC110  (of another process)
            await asyncio.sleep(0.02)
    return message


def chunks_in(message: AbstractIncomingMessage) -> list[Any]:
    args, kwargs, _ = json.loads(message.body)
    assert kwargs == {}
    (chunks,) = args
    assert isinstance(chunks, list)
    return chunks


async def publish_many(queue: CeleryQueue, messages: int) -> None:
    for number in range(messages):
        await queue.publish([Chunk("many", number)], bulk=True)


async def until_published(queue: CeleryQueue, seconds: float = 10.0) -> None:
    """Until something could be published again."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        try:
            await queue.publish([Chunk("again", 0)], bulk=False)
        except QueueUnavailable:
            await asyncio.sleep(0.05)
        else:
            return
    pytest.fail(f"nothing could be published for {seconds:g} s")


async def refused(queue: CeleryQueue) -> tuple[str, float]:
    """The reason, and after how many seconds."""
    began = time.monotonic()
    with pytest.raises(QueueUnavailable) as error:
        await queue.publish([Chunk("refused", 0)], bulk=False)
    return str(error.value), time.monotonic() - began


def refused_at_once(queue: CeleryQueue) -> str:
    """The reason, told without a wait: not even other tasks get their turn."""
    publishing = queue.publish([Chunk("refused", 0)], bulk=False)
    try:
        with pytest.raises(QueueUnavailable) as error:
            publishing.send(None)
    finally:
        publishing.close()
    return str(error.value)


async def test_a_message_is_what_celery_itself_would_send(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, channel: AbstractChannel
) -> None:
    await queue.publish([Chunk("a", 0), Chunk("b", 7)], bulk=False)
    app = celery_app(rabbitmq.url, print)
    with app.connection_for_write() as connection:
        app.tasks[TASK].apply_async(([["a", 0], ["b", 7]],), connection=connection, queue=INTERACTIVE)

    ours, theirs = await take(channel, INTERACTIVE), await take(channel, INTERACTIVE)

    assert json.loads(ours.body) == json.loads(theirs.body)
    for name in ("content_type", "content_encoding", "delivery_mode", "exchange", "routing_key"):
        assert getattr(ours, name) == getattr(theirs, name), name
    for message in (ours, theirs):
        ids = [message.headers.pop(name) for name in ("id", "root_id")]
        assert ids == [message.correlation_id] * 2
    assert ours.headers.items() <= theirs.headers.items()
    only_theirs = {name: theirs.headers[name] for name in theirs.headers.keys() - ours.headers.keys()}
    for name in ("origin", "argsrepr", "kwargsrepr"):  # to be shown to people
        del only_theirs[name]
    assert all(value in (None, 0, {}, [None, None]) for value in only_theirs.values())


async def test_interactive_chunks_travel_together_and_bulk_chunks_alone(
    queue: CeleryQueue, channel: AbstractChannel
) -> None:
    await queue.publish([Chunk("a", 0), Chunk("b", 0)], bulk=False)
    await queue.publish([Chunk("c", 0), Chunk("c", 1)], bulk=True)

    assert chunks_in(await take(channel, INTERACTIVE)) == [["a", 0], ["b", 0]]
    bulk = [chunks_in(await take(channel, BULK)) for _ in range(2)]
    assert sorted(bulk) == [[["c", 0]], [["c", 1]]]


async def test_a_queue_is_empty_when_all_is_delivered_though_not_done(
    queue: CeleryQueue, channel: AbstractChannel
) -> None:
    await queue.publish([Chunk("a", 0)], bulk=True)
    assert await queue.is_empty(bulk=True) is False
    assert await queue.is_empty(bulk=False) is True

    await take(channel, BULK)

    assert await queue.is_empty(bulk=True) is True


async def test_what_is_never_acknowledged_ends_among_the_dead(
    queue: CeleryQueue, channel: AbstractChannel
) -> None:
    await queue.publish([Chunk("a", 0)], bulk=True)
    for _ in range(DELIVERIES + 1):
        await (await take(channel, BULK)).reject(requeue=True)

    dead = await take(channel, DEAD)

    assert chunks_in(dead) == [["a", 0]]
    assert await queue.is_empty(bulk=True)


async def test_a_dead_letter_is_kept_while_there_is_nowhere_to_put_it(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, channel: AbstractChannel
) -> None:
    await channel.queue_delete(DEAD)
    await queue.publish([Chunk("a", 0)], bulk=True)
    await (await take(channel, BULK)).reject(requeue=False)

    async with aclosing(CeleryQueue(rabbitmq.url)) as newcomer:
        await newcomer.publish([Chunk("b", 0)], bulk=False)  # which declares what is missing
    await asyncio.to_thread(rabbitmq.restart)  # else it tries again after three minutes
    await until_published(queue)

    async with open_channel(rabbitmq.url) as another:
        assert chunks_in(await take(another, DEAD)) == [["a", 0]]


@pytest.mark.parametrize("name", [INTERACTIVE, BULK])
async def test_the_queues_of_work_keep_what_they_are_given(
    rabbitmq: RunningRabbitMQ,
    queue: CeleryQueue,  # noqa: ARG001  (it has declared them)
    name: str,
) -> None:
    listed = rabbitmq.ctl("list_queues", "name", "durable", "arguments", "--formatter", "json")
    (found,) = [each for each in json.loads(listed) if each["name"] == name]

    assert found["durable"]
    assert {key: value for key, _, value in found["arguments"]} == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-max-length": 100_000,
        "x-overflow": "reject-publish",
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": DEAD,
        "x-dead-letter-strategy": "at-least-once",
    }


async def test_a_queue_that_is_full_refuses_and_the_other_one_does_not(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue
) -> None:
    rabbitmq.ctl("set_policy", "full", f"^{BULK}$", '{"max-length": 1}', "--apply-to", "queues")
    try:
        with pytest.raises(QueueUnavailable, match="The queue is full"):
            await publish_many(queue, 100)  # quorum queues notice a little late
        await queue.publish([Chunk("a", 0)], bulk=False)
    finally:
        rabbitmq.ctl("clear_policy", "full")


async def test_a_queue_that_was_deleted_is_declared_again(
    queue: CeleryQueue, channel: AbstractChannel
) -> None:
    await channel.queue_delete(INTERACTIVE)

    reason, _ = await refused(queue)

    assert reason == "RabbitMQ has lost the queue."
    await until_published(queue)


async def test_a_caller_who_is_cancelled_disturbs_nobody(
    queue: CeleryQueue, channel: AbstractChannel
) -> None:
    impatient = asyncio.create_task(queue.publish([Chunk("a", 0)], bulk=False))
    patient = asyncio.create_task(queue.publish([Chunk("b", 0)], bulk=True))
    await asyncio.sleep(0)
    impatient.cancel()

    with pytest.raises(asyncio.CancelledError):
        await impatient
    await patient
    await queue.publish([Chunk("c", 0)], bulk=True)

    assert [chunks_in(await take(channel, BULK)) for _ in range(2)] == [[["b", 0]], [["c", 0]]]


async def test_a_broker_that_says_nothing_is_not_waited_for(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue
) -> None:
    rabbitmq.pause()
    try:
        first = await asyncio.gather(*(refused(queue) for _ in range(3)))
        refused_at_once(queue)
        unknown = await queue.is_empty(bulk=False)
    finally:
        rabbitmq.resume()

    assert {reason for reason, _ in first} == {"RabbitMQ did not answer in time."}
    assert max(seconds for _, seconds in first) < IN_TIME
    assert unknown is None
    await until_published(queue)


async def test_a_broker_that_is_out_of_memory_is_not_waited_for(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue
) -> None:
    rabbitmq.ctl("set_vm_memory_high_watermark", "0")
    try:
        _, seconds = await refused(queue)
        refused_at_once(queue)
        await asyncio.sleep(1)  # it takes connections, and no messages
        refused_at_once(queue)
    finally:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")

    assert seconds < IN_TIME
    await until_published(queue)


async def test_a_broker_that_stays_out_of_memory_is_told_of_and_nobody_waits_for_it_again(
    rabbitmq: RunningRabbitMQ,
    queue: CeleryQueue,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rabbitmq_connection, "CONNECT_TIMEOUT", 1.0)
    rabbitmq.ctl("set_vm_memory_high_watermark", "0")
    try:
        await refused(queue)
        for _ in range(35):
            await asyncio.sleep(0.1)
            refused_at_once(queue)
    finally:
        rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")

    assert "queue lost" in [each.getMessage() for each in caplog.records]
    await until_published(queue)


async def test_who_asks_whether_a_queue_is_empty_is_told_none_when_its_connection_is_given_up(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue
) -> None:
    patient = CeleryQueue(rabbitmq.url, timeout=3 * TIMEOUT)
    assert await patient.connect()
    rabbitmq.pause()
    try:
        asked = await _unanswered(patient)
        await patient.aclose()
        await asyncio.wait([asked])
        assert not asked.cancelled()
        assert asked.result() is None
    finally:
        rabbitmq.resume()
    await until_published(queue)


async def _unanswered(queue: CeleryQueue) -> asyncio.Future[bool | None]:
    """A question that a broker gets which is paused; it may answer some until it is."""
    while True:
        asked = asyncio.ensure_future(queue.is_empty(bulk=True))
        if not (await asyncio.wait([asked], timeout=0.2))[0]:
            return asked


async def test_who_is_cancelled_while_it_asks_is_cancelled(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue
) -> None:
    rabbitmq.pause()
    try:
        asked = await _unanswered(queue)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
    finally:
        rabbitmq.resume()
    await until_published(queue)


async def test_what_was_confirmed_outlives_the_brokers_death_and_what_was_not_is_refused(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, channel: AbstractChannel
) -> None:
    confirmed, asked, stop = set(), 0, asyncio.Event()

    async def caller(name: str) -> None:
        nonlocal asked
        number = 0
        while not stop.is_set():
            number, asked = number + 1, asked + 1
            try:
                await queue.publish([Chunk(name, number)], bulk=False)
                confirmed.add((name, number))
            except QueueUnavailable:
                await asyncio.sleep(0.05)

    callers = [asyncio.create_task(caller(f"caller{i}")) for i in range(8)]
    await asyncio.sleep(0.5)
    await asyncio.to_thread(rabbitmq.kill)
    down = await refused(queue)
    await asyncio.to_thread(rabbitmq.start)
    await until_published(queue)
    stop.set()
    await asyncio.gather(*callers)

    assert down[1] < IN_TIME
    assert len(confirmed) < asked
    del channel  # it died with the broker
    async with open_channel(rabbitmq.url) as another:
        waiting = await another.get_queue(INTERACTIVE)
        there = set()
        while message := await waiting.get(fail=False, no_ack=True):
            there |= {(job, number) for job, number in chunks_in(message)}
    assert confirmed <= there


async def test_who_never_had_a_broker_is_refused_at_once() -> None:
    queue = CeleryQueue("amqp://guest:guest@127.0.0.1:1/", timeout=TIMEOUT)
    try:
        assert (await refused(queue))[0] == LOST  # of its own time-out it would say so
        assert refused_at_once(queue) == LOST
        assert await queue.is_empty(bulk=True) is None
    finally:
        await queue.aclose()
    assert refused_at_once(queue) == LOST


async def test_a_wrong_password_is_logged_without_it(
    rabbitmq: RunningRabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    queue = CeleryQueue(rabbitmq.url.replace("guest:guest", "guest:hunter2"), timeout=TIMEOUT)
    try:
        assert not await queue.connect()
        await asyncio.sleep(0.5)
    finally:
        await queue.aclose()

    (record,) = [each for each in caplog.records if each.name == "dispatcher.jobs"]
    assert record.getMessage() == "queue lost"
    assert "hunter2" not in caplog.text
