"""Real workers at a real RabbitMQ: whatever is killed, stopped or garbage, no chunk is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from domain.errors import QueueUnavailable
from domain.job import Chunk
from infrastructure.celery_app import celery_app
from infrastructure.celery_messages import BULK, DEAD, INTERACTIVE, TASK
from tests.integration.workers import Workers, exit_code, tell, until, until_waiting

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infrastructure.celery_queue import CeleryQueue
    from tests.integration.rabbitmq_server import RunningRabbitMQ

HEADERS: dict[str, Any] = {
    "lang": "py",
    "task": TASK,
    "id": "1",
    "root_id": "1",
    "parent_id": None,
    "group": None,
}


@pytest.fixture
def workers(rabbitmq: RunningRabbitMQ, tmp_path: Path) -> Iterator[Workers]:
    workers = Workers(rabbitmq.url, tmp_path)
    yield workers
    for worker in workers.started:
        worker.stop(signal.SIGKILL)


async def test_what_celery_sends_and_what_we_send_is_the_same_work(
    queue: CeleryQueue, workers: Workers
) -> None:
    workers.start()
    await queue.publish([Chunk("ours", 0), Chunk("ours", 1)], bulk=False)
    app = celery_app(workers.url, print)
    with app.connection_for_write() as connection:
        app.tasks[TASK].apply_async(([["theirs", 3]],), connection=connection, queue=BULK)

    await until(lambda: len(workers.done()) == 3)

    assert set(workers.done()) == {Chunk("ours", 0), Chunk("ours", 1), Chunk("theirs", 3)}


async def test_a_hundred_long_bulk_chunks_do_not_delay_an_interactive_one(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    await queue.publish([Chunk("sleep-60-bulk", number) for number in range(100)], bulk=True)
    workers.start(at_once=2)
    await until(lambda: len(workers.begun()) == 2)

    for number in range(5):
        await queue.publish([Chunk("now", number)], bulk=False)
    await until(lambda: len(workers.done()) == 5)  # before any bulk one is done

    await until_waiting(rabbitmq, BULK, 98)  # the rest is there for others


async def test_a_worker_killed_in_mid_stream_loses_nothing(queue: CeleryQueue, workers: Workers) -> None:
    chunks = {Chunk(f"sleep-0.05-{number}", 0) for number in range(60)}
    first = workers.start()
    for chunk in chunks:
        await queue.publish([chunk], bulk=chunk.job.endswith("0"))
    await until(lambda: len(workers.done()) > 10)

    tell(first, signal.SIGKILL)
    before = len(workers.done())
    workers.start()
    await until(lambda: set(workers.done()) == chunks)

    assert before < len(chunks)


async def test_a_broker_killed_in_mid_stream_loses_nothing_and_is_found_again_at_once(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    workers.start()
    confirmed: set[Chunk] = set()
    stop = asyncio.Event()

    async def caller() -> None:
        for number in range(100_000):
            chunk = Chunk("sleep-0.02-x", number)
            try:
                await queue.publish([chunk], bulk=bool(number % 2))
                confirmed.add(chunk)
            except QueueUnavailable:
                await asyncio.sleep(0.05)
            if stop.is_set():
                return

    calling = asyncio.create_task(caller())
    await until(lambda: len(workers.done()) > 50)
    await asyncio.to_thread(rabbitmq.kill)
    in_flight = len(workers.begun()) - len(workers.done())
    await asyncio.to_thread(rabbitmq.start)
    back = time.monotonic()
    await until(lambda: any(note.what == "begun" and note.at > back for note in workers.notes()))
    found_after = time.monotonic() - back
    await asyncio.sleep(0.5)
    stop.set()
    await calling
    await until(lambda: confirmed <= set(workers.done()))

    assert found_after < 3
    said = workers.started[0].log.read_text()
    assert 0 < said.find("queue lost") < said.find("queue found")
    assert len(workers.done()) - len(set(workers.done())) <= 16 + in_flight


async def test_a_worker_that_is_stopped_finishes_what_it_has_begun_and_takes_no_more(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    await queue.publish([Chunk("sleep-1.5-x", number) for number in range(5)], bulk=True)
    worker = workers.start(at_once=2)
    await until(lambda: len(workers.begun()) == 2)

    tell(worker, signal.SIGTERM)
    code = await exit_code(worker)

    assert code == 0
    assert sorted(workers.done()) == sorted(workers.begun())
    assert len(workers.begun()) == 2
    await until_waiting(rabbitmq, BULK, 3)
    assert "runner left" in worker.last_words()


async def test_a_worker_that_is_stopped_gives_back_what_takes_too_long(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    await queue.publish([Chunk("sleep-60-x", number) for number in range(3)], bulk=True)
    worker = workers.start(at_once=2, grace=0.5)
    await until(lambda: len(workers.begun()) == 2)

    tell(worker, signal.SIGINT)
    code = await exit_code(worker)

    assert code == 0
    assert "work is cut short" in worker.last_words()
    assert "work does not end" not in worker.last_words()
    await until_waiting(rabbitmq, BULK, 3)


async def test_a_second_signal_ends_a_worker_at_once(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    await queue.publish([Chunk("sleep-60-x", 0)], bulk=False)
    worker = workers.start(grace=60)
    await until(lambda: len(workers.begun()) == 1)

    tell(worker, signal.SIGTERM)
    await until(lambda: "worker stopping" in worker.last_words())
    assert worker.alive()
    tell(worker, signal.SIGTERM)

    assert await exit_code(worker, 1) == 128 + signal.SIGTERM
    await until_waiting(rabbitmq, INTERACTIVE, 1)


async def test_garbage_is_set_aside_once_and_work_goes_on(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    envelope = b", {}, {}]"
    bodies = [b"[[" + argument + b"]" + envelope for argument in (b"7", b"[]", b'[["a"]]', b'[["a", -1]]')]
    bodies += [
        b"",
        b"{}",
        b"[]",
        b'"text"',
        b"\xff\xfe",
        b"[[], {}, {}]",
        b'[[], {"no": 1}, {}]',
        b"[1, 2, 3]",
    ]
    headers: list[dict[str, Any]] = [
        {},
        {"task": TASK},
        {**HEADERS, "task": "another"},
        {**HEADERS, "task": ["a", "b"]},
    ]
    headers += [{**HEADERS, "eta": "soon"}, {**HEADERS, "retries": "many", "timelimit": 5, "id": 5}]
    valid = b'[[[["never", 0]]], {}, {}]'
    messages = [(body, HEADERS, "application/json") for body in bodies]
    messages += [(valid, each, "application/json") for each in headers]
    messages += [(valid, HEADERS, kind) for kind in ("application/x-python-serialize", "image/png")]
    worker = workers.start()
    async with await aio_pika.connect(rabbitmq.url) as connection:
        exchange = (await connection.channel()).default_exchange
        for body, header, kind in messages:
            message = aio_pika.Message(
                body, headers=dict(header), content_type=kind, content_encoding="utf-8"
            )
            await exchange.publish(message, INTERACTIVE)
    await queue.publish([Chunk("good", 0)], bulk=False)

    await until(lambda: Chunk("good", 0) in workers.done())

    await until_waiting(rabbitmq, DEAD, len(messages))
    assert workers.begun() == [Chunk("good", 0)]
    assert worker.alive()


async def test_work_that_always_fails_ends_among_the_dead(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    workers.start()
    await queue.publish([Chunk("fail-x", 0)], bulk=True)

    await until_waiting(rabbitmq, DEAD, 1, seconds=20)

    assert len(workers.begun()) == 21


async def test_work_that_kills_its_worker_is_there_again_and_the_delivery_has_counted(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    worker = workers.start()
    await queue.publish([Chunk("die-x", 0)], bulk=False)

    assert await exit_code(worker) == 77

    await until_waiting(rabbitmq, INTERACTIVE, 1)
    async with await aio_pika.connect(rabbitmq.url) as connection:
        waiting = await (await connection.channel()).get_queue(INTERACTIVE)
        message = await waiting.get()
        assert message.headers["x-delivery-count"] == 1  # after 20 of these it is dead


async def test_work_that_cannot_be_recorded_is_kept_until_it_can(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    workers.start()
    await queue.publish([Chunk("down-2-x", 0)], bulk=False)

    await until(lambda: workers.done() == [Chunk("down-2-x", 0)])

    await until_waiting(rabbitmq, DEAD, 0)
    assert len(workers.begun()) > 2


async def test_a_worker_whose_event_loop_has_died_ends_and_what_it_had_is_there_again(
    rabbitmq: RunningRabbitMQ, queue: CeleryQueue, workers: Workers
) -> None:
    worker = workers.start()
    await queue.publish([Chunk("doom-x", 0)], bulk=False)

    code = await exit_code(worker)

    assert code == 1
    assert "event loop has died" in worker.last_words()
    await until_waiting(rabbitmq, INTERACTIVE, 1)


async def test_a_worker_waits_for_its_broker_and_can_be_stopped_meanwhile(tmp_path: Path) -> None:
    workers = Workers("amqp://guest:hunter2@127.0.0.1:1/", tmp_path)
    worker = workers.start()
    try:
        await until(lambda: "queue lost" in worker.last_words())
        tell(worker, signal.SIGTERM)
        assert await exit_code(worker) == 0
        assert "hunter2" not in worker.last_words()
    finally:
        worker.stop(signal.SIGKILL)
