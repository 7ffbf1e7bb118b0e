"""Who is too late for the next batch, and who takes the place."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from domain.batch import BatchSeconds
from domain.errors import Overloaded
from domain.events import BatchSent, Event, Shed
from tests.fakes import FakeServer
from tests.unit.batches import M, ask, batching, kinds, sent, together
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from application.policies.batching import Batching


async def taught(server: FakeServer, *, max_size: int = 32, heard: list[Event] | None = None) -> Batching:
    """One that has seen how long a batch takes `server`."""
    predict = batching(server.predict, max_size=max_size, heard=heard)
    await together(predict, ask("one"), ask("two"))
    server.asked.clear()
    return predict


@virtual_time
async def test_who_would_be_too_late_gives_way_to_those_with_more_time() -> None:
    heard: list[Event] = []
    server = FakeServer(seconds=1.0)
    predict = await taught(server, max_size=1, heard=heard)
    heard.clear()
    begun = now()

    hurried, patient = await together(predict, ask("hurried", deadline=begun + 1.9), ask("patient"))

    assert isinstance(hurried, Overloaded)
    assert str(hurried) == (
        "Others wait who have more time: yours is over in 0.9 s, and the next batch is answered in 1 s."
    )
    assert hurried.retry_after == pytest.approx(1.0)
    assert kinds([patient]) == ["answered"]
    assert sent(server) == [("first",), ("patient",)]
    assert [event for event in heard if not isinstance(event, BatchSent)] == [Shed(M, 1, "late")]


@virtual_time
async def test_it_is_refused_as_soon_as_that_is_clear() -> None:
    predict = await taught(FakeServer(seconds=1.0))
    begun = now()
    first, hurried, patient = (
        asyncio.create_task(predict(each))
        for each in (ask("first"), ask("hurried", deadline=begun + 1.9), ask("patient"))
    )

    with pytest.raises(Overloaded):
        await hurried

    assert now() - begun == pytest.approx(1.0)
    await asyncio.gather(first, patient)


@virtual_time
async def test_who_has_just_enough_time_stays() -> None:
    predict = await taught(FakeServer(seconds=1.0))

    assert kinds(await together(predict, ask("just", deadline=now() + 2.001), ask("patient"))) == [
        "answered",
        "answered",
    ]


@virtual_time
async def test_where_all_would_be_too_late_the_last_is_asked_anyway_so_that_pessimism_cannot_last() -> None:
    server = FakeServer(seconds=10.0)
    predict = await taught(server)
    server.seconds = 0.1

    answers = [await together(predict, *[ask("x", deadline=now() + 2.0)] * 2) for _ in range(25)]

    assert kinds(answers[0]) == ["Overloaded", "answered"]
    assert kinds(answers[-1]) == ["answered", "answered"]


@virtual_time
async def test_all_instances_of_a_request_that_is_too_late_are_refused_together() -> None:
    heard: list[Event] = []
    server = FakeServer(seconds=1.0)
    predict = await taught(server, heard=heard)

    hurried, patient = await together(predict, ask("a", "b", "c", deadline=now() + 1.5), ask("patient"))

    assert kinds([hurried, patient]) == ["Overloaded", "answered"]
    assert sent(server)[1:] == [("patient",)]
    assert heard.count(Shed(M, 3, "late")) == 1


@virtual_time
async def test_one_request_alone_in_line_is_asked_however_many_instances_it_has() -> None:
    server = FakeServer(seconds=1.0)
    predict = await taught(server)

    assert kinds(await together(predict, ask("a", "b", "c", deadline=now() + 1.5))) == ["answered"]


@virtual_time
async def test_only_answers_teach_how_long_a_batch_takes() -> None:
    server = FakeServer(seconds=1.0)
    predict = await taught(server)
    server.seconds, server.error = 0.0, Overloaded("busy", 1.0)
    for _ in range(10):
        with suppress(Overloaded):
            await together(predict, ask("fails"))
    server.seconds, server.error = 1.0, None

    assert kinds(await together(predict, ask("late", deadline=now() + 1.5), ask("patient"))) == [
        "Overloaded",
        "answered",
    ]


def test_the_time_that_a_batch_needs_is_the_mean_and_half_a_deviation() -> None:
    seconds = BatchSeconds()
    assert seconds.needed() == 0.0

    for _ in range(200):
        seconds.learn(1.0)
        seconds.learn(3.0)

    assert seconds.needed() == pytest.approx(2.0 + 0.5 * 1.0, abs=0.15)


def test_what_a_batch_needed_long_ago_is_forgotten() -> None:
    seconds = BatchSeconds()
    seconds.learn(10.0)

    for _ in range(50):
        seconds.learn(1.0)

    assert seconds.needed() < 1.1
