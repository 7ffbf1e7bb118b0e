from __future__ import annotations

import asyncio

import pytest

from application.bundling import BUNDLE, PORTION, Bundling
from domain.errors import QueueUnavailable
from domain.job import Chunk
from tests.fakes_jobs import FakeJobQueue
from tests.virtual_time import virtual_time

MANY = [Chunk(f"j{i}", 0) for i in range(BUNDLE + 8)]


@virtual_time
async def test_single_chunks_that_meet_travel_together() -> None:
    queue = FakeJobQueue()
    queue.trouble.seconds = 1.0
    bundling = Bundling(queue)

    await asyncio.gather(*(bundling.publish([chunk], bulk=False) for chunk in MANY))

    assert queue.publishes == [BUNDLE, 8]
    assert queue.deliver() == MANY


@virtual_time
async def test_the_two_kinds_do_not_travel_together() -> None:
    queue = FakeJobQueue()
    bundling = Bundling(queue)

    await asyncio.gather(*(bundling.publish([chunk], bulk=i % 2 == 0) for i, chunk in enumerate(MANY)))

    assert queue.deliver(bulk=True) == MANY[::2]
    assert queue.deliver(bulk=False) == MANY[1::2]


@virtual_time
async def test_of_interactive_chunks_no_more_travel_together_whoever_publishes_them() -> None:
    queue = FakeJobQueue()
    await Bundling(queue).publish(MANY, bulk=False)
    assert queue.publishes == [BUNDLE, 8]
    assert queue.deliver(bulk=False) == MANY


@pytest.mark.parametrize("bulk", [False, True])
@virtual_time
async def test_who_publishes_a_great_many_does_so_in_portions(bulk: bool) -> None:
    queue = FakeJobQueue()
    many = [Chunk("j", i) for i in range(PORTION + 1)]
    await Bundling(queue).publish(many, bulk=bulk)
    assert queue.publishes == [PORTION, 1] if bulk else [BUNDLE] * (PORTION // BUNDLE) + [1]
    assert queue.deliver(bulk=bulk) == many


@virtual_time
async def test_bulk_chunks_that_are_together_already_wait_for_nobody() -> None:
    queue = FakeJobQueue()
    await Bundling(queue).publish(MANY, bulk=True)
    assert queue.publishes == [len(MANY)]


@virtual_time
async def test_what_the_queue_raises_is_raised_to_each_and_it_tells_whether_it_is_empty() -> None:
    queue = FakeJobQueue()
    bundling = Bundling(queue)
    assert await bundling.is_empty(bulk=False)
    queue.trouble.down = True

    refused = await asyncio.gather(
        *(bundling.publish([chunk], bulk=False) for chunk in MANY), return_exceptions=True
    )

    assert {type(each) for each in refused} == {QueueUnavailable}
    with pytest.raises(QueueUnavailable):
        await bundling.publish(MANY, bulk=True)
