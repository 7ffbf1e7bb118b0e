from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from domain.errors import QueueUnavailable
from domain.job import Chunk
from infrastructure.local_queue import PAUSE, LocalQueue
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Sequence


def chunks(*numbers: int) -> list[Chunk]:
    return [Chunk("j", number) for number in numbers]


@dataclass
class Work:
    """Takes `seconds`; fails with `error` as often as `failures` says for a chunk."""

    seconds: float = 1.0
    failures: dict[int, int] = field(default_factory=dict)
    error: Exception = field(default_factory=lambda: ValueError("a bug"))
    done: list[tuple[int, float]] = field(default_factory=list)
    in_flight: set[int] = field(default_factory=set)

    async def __call__(self, chunks: Sequence[Chunk]) -> None:
        (chunk,) = chunks
        self.in_flight.add(chunk.number)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight.remove(chunk.number)
        if self.failures.get(chunk.number):
            self.failures[chunk.number] -= 1
            raise self.error
        self.done.append((chunk.number, now()))


async def run(queue: LocalQueue, work: Work, seconds: float) -> None:
    """Let it run for so long."""
    running = asyncio.create_task(queue.run(work))
    await asyncio.sleep(seconds)
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual_time
async def test_chunks_are_worked_in_order_and_as_many_at_once_as_allowed() -> None:
    queue, work = LocalQueue(interactive_at_once=2), Work()
    await queue.publish(chunks(0, 1, 2), bulk=False)
    await queue.publish(chunks(3, 4), bulk=False)
    await run(queue, work, 10.0)
    assert work.done == [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 3.0)]


@virtual_time
async def test_what_is_published_while_it_runs_is_worked_at_once() -> None:
    queue, work = LocalQueue(), Work()
    running = asyncio.create_task(queue.run(work))
    for i in range(3):
        await asyncio.sleep(0.5)
        await queue.publish(chunks(i), bulk=bool(i % 2))
    await asyncio.sleep(5.0)
    running.cancel()
    await asyncio.wait([running])
    assert work.done == [(0, 1.5), (1, 2.0), (2, 2.5)]


@pytest.mark.parametrize("bulk", [False, True])
@virtual_time
async def test_neither_kind_starves_the_other(bulk: bool) -> None:
    queue, work = LocalQueue(interactive_at_once=2, bulk_at_once=2), Work()
    await queue.publish(chunks(*range(100)), bulk=bulk)
    await queue.publish(chunks(100), bulk=not bulk)
    await run(queue, work, 1.5)
    assert (100, 1.0) in work.done


@virtual_time
async def test_what_failed_is_tried_again_after_a_pause_and_only_that(
    caplog: pytest.LogCaptureFixture,
) -> None:
    queue, work = LocalQueue(interactive_at_once=1), Work(failures={0: 2})
    await queue.publish(chunks(0, 1), bulk=False)
    with caplog.at_level(logging.ERROR):
        await run(queue, work, 20.0)
    assert work.done == [(1, 1 + PAUSE + 1), (0, 2 * (1 + PAUSE) + 1 + 1)]
    assert "chunk of job j" in caplog.text


@virtual_time
async def test_a_store_that_is_gone_is_waited_for_without_a_traceback_for_each_chunk(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = Work(failures={0: 3}, error=QueueUnavailable("the store is gone"))
    queue = LocalQueue()
    await queue.publish(chunks(0), bulk=False)
    with caplog.at_level(logging.INFO):
        await run(queue, work, 20.0)
    assert work.done == [(0, 3 * (1 + PAUSE) + 1)]
    assert caplog.text == ""


@virtual_time
async def test_it_is_empty_when_nothing_waits_in_that_lane() -> None:
    queue = LocalQueue(interactive_at_once=1)
    assert await queue.is_empty(bulk=False)
    await queue.publish(chunks(0, 1), bulk=False)
    assert not await queue.is_empty(bulk=False)
    assert await queue.is_empty(bulk=True)
    await run(queue, Work(), 0.5)
    assert not await queue.is_empty(bulk=False)
    await run(queue, Work(), 1.5)
    assert await queue.is_empty(bulk=False)


@virtual_time
async def test_its_end_is_the_end_of_what_is_being_worked_and_what_waits_stays() -> None:
    queue, work = LocalQueue(interactive_at_once=2), Work(seconds=10.0)
    await queue.publish(chunks(0, 1, 2), bulk=False)
    await run(queue, work, 1.0)
    assert (work.in_flight, work.done) == (set(), [])
    await run(queue, work, 15.0)
    assert work.done == [(2, 11.0)]


@virtual_time
async def test_thousands_wait_without_being_in_anybodys_way() -> None:
    queue, work = LocalQueue(interactive_at_once=512), Work()
    await queue.publish(chunks(*range(5120)), bulk=False)
    await run(queue, work, 10.5)
    assert sorted(number for number, _ in work.done) == [*range(5120)]
