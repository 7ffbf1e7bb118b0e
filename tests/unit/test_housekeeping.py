from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from application import housekeeping, webhook_calls
from application.housekeeping import EVERY, Housekeeping
from application.job_records import JobRecords
from application.webhook_calls import AT_ONCE, CLAIM, GRACE, PER_HOST
from domain.job import Chunk, Failure, Job, JobStatus
from domain.ports import Change, NewJob
from domain.prediction import ModelRef
from domain.webhook import Attempt, Delivery
from tests.fakes_jobs import FakeJobQueue, FakeJobStore, FakeWebhooks, Trouble
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from domain.ports import WebhookSender

EPOCH = 1_700_000_000.0
HOOK = "https://hooks.example/done"


@dataclass
class House:
    """A store, a queue and a receiver, kept by as many housekeepers as a test wants."""

    store: FakeJobStore = field(default_factory=FakeJobStore)
    queue: FakeJobQueue = field(default_factory=FakeJobQueue)
    webhooks: FakeWebhooks = field(default_factory=FakeWebhooks)
    ahead: float = 0.0  # seconds by which the clock was set

    def clock(self) -> float:
        return EPOCH + self.ahead + now()

    def keeper(self, send: WebhookSender | None = None) -> Housekeeping:
        return Housekeeping(
            JobRecords(self.store), self.queue, send or self.webhooks, clock=self.clock, chance=lambda: 0.5
        )

    @contextlib.asynccontextmanager
    async def kept(self, keepers: int = 1, send: WebhookSender | None = None) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.keeper(send).run()) for _ in range(keepers)]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def accept(self, name: str, webhook: str | None = None, *, bulk: bool = False) -> Job:
        at = self.clock()
        hook = None if webhook is None else Delivery(webhook)
        job = Job(name, ModelRef("m"), 1, 500, at, at + 3_600, 86_400, changed_at=at, bulk=bulk, webhook=hook)
        await self.store.create([NewJob(job, b'["x"]')])
        return job

    async def end(self, job: Job, failed: int = 0) -> None:
        error = Failure("server-fault", "It broke.") if failed else None
        ended = job.chunk_finished(0, self.clock(), failed=failed, error=error, version="1")
        assert ended is not None
        assert await self.store.save([Change(ended, 0, b"{}\n")]) == [True]

    async def end_with(self, *webhooks: str) -> None:
        for number, webhook in enumerate(webhooks):
            await self.end(await self.accept(f"{Delivery(webhook).host}-{number}", webhook))

    def webhook(self, name: str) -> Delivery:
        delivery = self.store.jobs[name].webhook
        assert delivery is not None
        return delivery

    def called(self) -> dict[str, int]:
        return Counter(host for host, *_ in self.webhooks.called)


def broken_off(text: str) -> Attempt:
    raise OSError(text)


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
async def test_a_webhook_is_called_within_a_second_of_the_jobs_end() -> None:
    house = House()
    job = await house.accept("a", HOOK)
    async with house.kept():
        await asyncio.sleep(10.4)
        await house.end(job)
        await asyncio.sleep(1.0)
    ((host, message_id, at),) = house.webhooks.called
    assert (host, message_id) == ("hooks.example", "a:0")
    assert at <= EPOCH + 10.4 + EVERY
    assert house.webhook("a") == Delivery(HOOK, (Attempt(at, 200),), 1, None, delivered=True)


@virtual_time
async def test_the_message_says_what_became_of_the_job_and_carries_no_result() -> None:
    house = House()
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(2)
    assert json.loads(house.webhooks.bodies[0]) == {
        "type": "job.succeeded",
        "timestamp": "2023-11-14T22:13:20Z",
        "data": {
            "id": "hooks.example-0",
            "status": "succeeded",
            "model_name": "m",
            "progress": {"done": 1, "failed": 0, "total": 1},
        },
    }


@virtual_time
async def test_a_call_that_fails_is_repeated_by_the_plan_unchanged_and_then_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 120.0)
    monkeypatch.setattr(housekeeping, "SEARCH_EVERY", 1e5)
    house = House()
    house.webhooks.status["hooks.example"] = 500
    await house.end((await house.accept("a", HOOK))._replace(retention=7 * 86_400))
    async with house.kept():
        await asyncio.sleep(6 * 86_400)
    times = [at for *_, at in house.webhooks.called]
    assert len(times) == 10
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    planned = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert all(plan <= pause <= plan * 1.2 + 120 for plan, pause in zip(planned, pauses, strict=True))
    assert {message_id for _, message_id, _ in house.webhooks.called} == {"a:0"}
    assert len(set(house.webhooks.bodies)) == 1
    assert (house.webhook("a").next_at, house.webhook("a").delivered) == (None, False)


@virtual_time
async def test_a_job_that_ends_again_is_another_message() -> None:
    house = House()
    job = await house.accept("a", HOOK)
    await house.end(job, failed=1)
    async with house.kept():
        await asyncio.sleep(2)
        again = house.store.jobs["a"].replayed(house.clock())
        await house.store.save([Change(again)])
        await house.end(again)
        await asyncio.sleep(2)
    assert [message_id for _, message_id, _ in house.webhooks.called] == ["a:0", "a:1"]


@virtual_time
async def test_many_housekeepers_call_once() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 3.0
    await house.end_with(*[HOOK] * 50)
    async with house.kept(keepers=4):
        await asyncio.sleep(120)
    assert set(Counter(message_id for _, message_id, _ in house.webhooks.called).values()) == {1}
    assert all(job.webhook and job.webhook.delivered for job in house.store.jobs.values())


@virtual_time
async def test_a_call_that_waited_too_long_is_left_to_who_claims_it_next() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 15.0
    await house.end_with(*[HOOK] * 100)
    async with house.kept(keepers=2):
        await asyncio.sleep(900)
    assert set(Counter(message_id for _, message_id, _ in house.webhooks.called).values()) == {1}
    assert all(job.webhook and job.webhook.delivered for job in house.store.jobs.values())


@virtual_time
async def test_what_a_housekeeper_that_died_had_claimed_is_called_by_another() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 15.0
    await house.end_with(HOOK)
    dead = house.keeper()
    await dead.tidy()
    await asyncio.sleep(1)
    for task in dead._calls._tasks:
        task.cancel()
    async with house.kept():
        await asyncio.sleep(CLAIM - 5)
        assert house.called() == {"hooks.example": 1}
        await asyncio.sleep(20)
    assert house.called() == {"hooks.example": 2}
    assert house.webhook("hooks.example-0").delivered


@virtual_time
async def test_a_sender_that_never_returns_is_given_up_before_its_claim_ends() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 1e9
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(CLAIM - 1)
        assert [each.problem for each in house.webhook("hooks.example-0").attempts] == [
            "The server did not answer in time."
        ]


@virtual_time
async def test_a_sender_that_raises_has_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(url: str, message_id: str, body: bytes, now: float) -> Attempt:
        await asyncio.sleep(0)
        return broken_off(f"{url} {message_id} {body!r} {now}")

    house = House()
    await house.end_with(HOOK)
    async with house.kept(send=broken):
        await asyncio.sleep(2)
    delivery = house.webhook("hooks.example-0")
    assert (delivery.planned, delivery.attempts[0].problem) == (1, "The call failed.")
    assert "could not be called" in caplog.text


@virtual_time
async def test_while_the_store_is_down_a_call_waits_to_be_recorded_and_is_not_repeated() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 2.0
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(1)
        house.store.trouble.down = True
        await asyncio.sleep(20)
        house.store.trouble.down = False
        await asyncio.sleep(120)
    assert house.called() == {"hooks.example": 1}
    assert house.webhook("hooks.example-0").delivered


@virtual_time
async def test_a_record_whose_confirmation_was_lost_is_not_made_twice() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 2.0
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(1)
        house.store.trouble.answers_lost = True
        await asyncio.sleep(3)
        house.store.trouble.answers_lost = False
        await asyncio.sleep(120)
    assert len(house.webhook("hooks.example-0").attempts) == 1
    assert house.called() == {"hooks.example": 1}


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
async def test_an_end_that_comes_while_an_earlier_one_is_told_is_told_too() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 10.0
    job = await house.accept("a", HOOK)
    await house.end(job, failed=1)
    async with house.kept():
        await asyncio.sleep(9.9)  # the first call returns at 10
        again = house.store.jobs["a"].replayed(house.clock())
        await house.store.save([Change(again)])
        await house.end(again)
        await asyncio.sleep(20)
    assert [message_id for _, message_id, _ in house.webhooks.called] == ["a:0", "a:1"]
    assert (len(house.webhook("a").attempts), house.webhook("a").delivered) == (2, True)


@virtual_time
async def test_a_call_that_a_person_asks_for_is_made_though_one_is_under_way() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 10.0
    await house.end(await house.accept("a", HOOK))
    async with house.kept():
        await asyncio.sleep(5)
        job = house.store.jobs["a"]
        await house.store.save([Change(job.notified(house.webhook("a").scheduled(house.clock()), 0.0))])
        await asyncio.sleep(30)
    assert house.called() == {"hooks.example": 2}
    assert (len(house.webhook("a").attempts), house.webhook("a").planned) == (2, 1)


@virtual_time
async def test_a_clock_that_jumps_ahead_may_double_a_call_and_loses_none() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 10.0
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(5)
        house.ahead = 600.0
        await asyncio.sleep(60)
    assert house.called() == {"hooks.example": 2}
    assert house.webhook("hooks.example-0").delivered


@virtual_time
async def test_a_clock_that_is_set_back_does_not_double_a_call() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 10.0
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(5)
        house.ahead = -600.0
        await asyncio.sleep(1_200)
    assert house.called() == {"hooks.example": 1}
    assert house.webhook("hooks.example-0").delivered


@virtual_time
async def test_a_dead_host_with_thousands_of_webhooks_does_not_hold_up_another() -> None:
    house = House()
    house.webhooks.status["dead.example"], house.webhooks.seconds["dead.example"] = None, 15.0
    await house.end_with(*["https://dead.example/"] * 1_000)
    async with house.kept():
        await asyncio.sleep(30.2)
        await house.end_with(HOOK)
        await asyncio.sleep(1.5)
        assert house.called()["hooks.example"] == 1
        assert house.webhooks.most_at_once <= PER_HOST + 1


@virtual_time
async def test_a_dead_host_costs_the_store_little() -> None:
    house = House()
    house.webhooks.status["dead.example"], house.webhooks.seconds["dead.example"] = None, 15.0
    await house.end_with(*["https://dead.example/"] * 1_000)
    async with house.kept():
        await asyncio.sleep(300)
        house.store.calls.clear()
        await asyncio.sleep(300)
    writes = sum(count for method, count in house.store.calls if method == "save")
    assert writes / 300 < 15


@virtual_time
async def test_a_host_that_answers_gets_thousands_of_calls_quickly() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 0.02
    await house.end_with(*[HOOK] * 2_000)
    async with house.kept():
        await asyncio.sleep(10)
    assert house.called() == {"hooks.example": 2_000}


@virtual_time
async def test_calls_under_way_are_bounded_and_dead_hosts_delay_others_by_little() -> None:
    house = House()
    for number in range(10):
        house.webhooks.seconds[f"dead{number}.example"] = 15.0
    await house.end_with(*[f"https://dead{number % 10}.example/" for number in range(200)])
    async with house.kept():
        await asyncio.sleep(5)
        await house.end_with(HOOK)
        await asyncio.sleep(30)
    assert house.webhooks.most_at_once == AT_ONCE
    assert house.called()["hooks.example"] == 1


@virtual_time
async def test_no_more_calls_are_claimed_than_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_calls, "WAITING", 20)
    house = House()
    house.webhooks.seconds = {f"h{number}.example": 1.0 for number in range(100)}
    await house.end_with(*[f"https://h{number}.example/" for number in range(100)])
    async with house.kept():
        await asyncio.sleep(0.5)
        assert sum(house.called().values()) == 20
        await asyncio.sleep(1_000)
    assert sum(house.called().values()) == 100


@virtual_time
async def test_calls_under_way_may_end_when_it_stops_and_others_are_not_begun() -> None:
    house = House()
    house.webhooks.seconds = {"hooks.example": GRACE - 1, "slow.example": 15.0}
    await house.end_with(HOOK, "https://slow.example/", *[HOOK] * PER_HOST)
    async with house.kept():
        await asyncio.sleep(0.5)
    assert house.called() == {"hooks.example": PER_HOST, "slow.example": 1}
    assert now() <= GRACE + 1
    delivered = [job.id for job in house.store.jobs.values() if job.webhook and job.webhook.delivered]
    assert len(delivered) == PER_HOST
    house.webhooks.seconds.clear()
    async with house.kept():
        await asyncio.sleep(CLAIM + 2)
    assert all(job.webhook and job.webhook.delivered for job in house.store.jobs.values())


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
async def test_a_job_that_nobody_has_is_queued_again() -> None:
    house = House()
    await house.accept("a")
    await house.accept("b", bulk=True)
    async with house.kept():
        await asyncio.sleep(25)
        assert house.queue.published == []
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
