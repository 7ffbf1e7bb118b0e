from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import pytest

from application.housekeeping import EVERY, MOST
from domain.errors import QueueUnavailable
from domain.job import Chunk, JobStatus
from domain.ports import Change
from tests.fakes_jobs import FakeJobQueue, FakeJobStore, Trouble
from tests.unit.job_house import EPOCH, HOOK, House
from tests.virtual_time import virtual_time


@virtual_time
async def test_a_job_past_its_time_is_expired() -> None:
    house = House()
    await house.accept("a")
    async with house.kept():
        await asyncio.sleep(3_599)
        assert not house.store.jobs["a"].over
        await asyncio.sleep(2)
        assert house.store.jobs["a"].status is JobStatus.EXPIRED


@virtual_time
async def test_a_job_is_forgotten_after_its_retention() -> None:
    house = House()
    await house.end((await house.accept("a"))._replace(retention=600.0))
    async with house.kept():
        await asyncio.sleep(599)
        assert "a" in house.store.jobs
        await asyncio.sleep(2)
    assert (house.store.jobs, house.store.inputs, house.store.results) == ({}, {}, {})


@virtual_time
async def test_a_webhook_that_fails_is_called_once_at_least_and_as_long_as_the_job_is_kept() -> None:
    house = House()
    house.webhooks.status["hooks.example"] = 500
    await house.end((await house.accept("a", HOOK))._replace(retention=0.0))
    await house.end((await house.accept("b", HOOK))._replace(retention=600.0))
    async with house.kept():
        await asyncio.sleep(100)
        assert "a" not in house.store.jobs
        await asyncio.sleep(501)
    assert (house.store.jobs, house.store.results) == ({}, {})
    assert Counter(message for _, message, _ in house.webhooks.called) == {"a:0": 1, "b:0": 3}


@virtual_time
async def test_an_unreachable_store_is_looked_at_again_every_second() -> None:
    house = House(store=FakeJobStore(trouble=Trouble(down=True)))
    async with house.kept():
        await asyncio.sleep(100)
        assert 95 <= sum(method == "due" for method, _ in house.store.calls) <= 105
        house.store.trouble.down = False
        await house.end_with(HOOK)
        await asyncio.sleep(2)
    assert house.called() == {"hooks.example": 1}


@virtual_time
async def test_one_record_that_cannot_be_looked_after_does_not_disturb_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    await house.end_with(HOOK)
    await house.accept("bad")
    house.store.jobs["bad"] = house.store.jobs["bad"]._replace(expires_at=0.0, status="nonsense")  # type: ignore[arg-type]
    house.store.jobs["bad"] = house.store.jobs["bad"]._replace(attempts=None, revision="x")  # type: ignore[arg-type]
    async with house.kept():
        await asyncio.sleep(2)
    assert house.called() == {"hooks.example": 1}
    assert "job bad could not be looked after" in caplog.text


@virtual_time
async def test_an_entry_without_its_record_is_removed_and_holds_up_nothing() -> None:
    @dataclass
    class Torn(FakeJobStore):
        ghosts: set[str] = field(default_factory=lambda: {f"ghost-{number}" for number in range(200)})

        async def due(self, now: float, limit: int) -> list[str]:
            return [*sorted(self.ghosts), *await super().due(now, limit)][:limit]

        async def delete(self, ids: list[str]) -> None:  # type: ignore[override]
            self.ghosts.difference_update(ids)
            await super().delete(ids)

    house = House(store=Torn())
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(0.5)
    assert house.called() == {"hooks.example": 1}


@virtual_time
async def test_what_another_has_claimed_since_it_was_found_due_is_left_alone() -> None:
    @dataclass
    class Late(FakeJobStore):
        async def due(self, now: float, limit: int) -> list[str]:
            await super().due(now, limit)
            return [*self.jobs][:limit]

    house = House(store=Late())
    await house.end_with(*[HOOK] * MOST)
    for job in [*house.store.jobs.values()]:
        claimed = house.webhook(job.id).claimed(house.clock() + 60)
        await house.store.save([Change(job.notified(claimed, house.clock()))])
    house.store.trouble.seconds = 1.0
    async with asyncio.timeout(60):
        await house.keeper().tidy()
    assert house.called() == {}


@virtual_time
async def test_a_store_that_takes_no_changes_is_not_asked_for_more() -> None:
    class ReadOnly(FakeJobStore):
        async def save(self, changes: object) -> list[bool]:
            await asyncio.sleep(0)
            raise QueueUnavailable(f"{changes}")

    house = House(store=ReadOnly())
    await house.accept("a")
    house.ahead = 3_601.0
    with pytest.raises(QueueUnavailable):
        await house.keeper().tidy()


@virtual_time
async def test_a_job_that_nobody_has_is_queued_again() -> None:
    house = House()
    await house.accept("a")
    await house.accept("b", bulk=True)
    async with house.kept():
        await asyncio.sleep(25)
        assert house.queue.published == []
        assert "backlog" not in dict(house.store.calls)  # chance says when one searches first
        await asyncio.sleep(70)
    assert house.queue.published == [Chunk("a", 0), Chunk("b", 0)]  # and once: now the queue has them


@virtual_time
async def test_while_a_queue_has_anything_or_does_not_say_nothing_is_queued_again() -> None:
    house = House(queue=FakeJobQueue(knows=False))
    await house.accept("a")
    async with house.kept():
        await asyncio.sleep(300)
        house.queue.knows = True
        house.queue.waiting[False].append(Chunk("other", 0))
        await asyncio.sleep(300)
    assert house.queue.published == []


@virtual_time
async def test_a_running_job_is_lost_only_after_half_an_hour_and_only_what_is_open_of_it() -> None:
    house = House()
    job = (await house.accept("a"))._replace(total=1_000, expires_at=EPOCH + 1e6)
    running = job.begun(0, house.clock())
    assert running is not None
    done = running.chunk_finished(0, house.clock(), failed=0, error=None, version=None)
    assert done is not None
    house.store.jobs["a"] = done
    async with house.kept():
        await asyncio.sleep(1_790)
        assert house.queue.published == []
        await asyncio.sleep(60)
    assert house.queue.published == [Chunk("a", 1)]


@virtual_time
async def test_of_many_that_are_lost_the_oldest_is_queued_first() -> None:
    house = House()
    for number in range(450):
        await house.accept(f"j{number:03}")
    await house.keeper().search(queued=0.0, running=0.0)
    assert house.queue.published == [Chunk(f"j{number:03}", 0) for number in range(450)]


@virtual_time
async def test_a_search_does_not_read_jobs_of_a_backlog_that_is_not_lost() -> None:
    house = House()
    for number in range(1_000):
        await house.accept(f"b{number}", bulk=True)
    house.queue.waiting[True].append(Chunk("b0", 0))
    await asyncio.sleep(100)
    house.store.calls.clear()
    await house.keeper().search(queued=30.0, running=1_800.0)
    assert sum(method == "page" for method, _ in house.store.calls) == 2  # of the running ones


@virtual_time
async def test_searching_does_not_delay_a_webhook() -> None:
    house = House()
    job = await house.accept("a", HOOK)
    house.queue.trouble.seconds = 20.0
    async with house.kept():
        await asyncio.sleep(31)
        await house.end(job)
        await asyncio.sleep(EVERY + 0.1)
        assert house.called() == {"hooks.example": 1}
