from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from typing import TYPE_CHECKING

from application import housekeeping
from application.housekeeping import EVERY
from application.job_records import JobRecords
from application.webhook_calls import CLAIM, GRACE, PER_HOST, REACH, WebhookCalls
from domain.ports import Change
from domain.webhook import Attempt, Delivery
from tests.unit.job_house import EPOCH, HOOK, House
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    import pytest


def broken_off(text: str) -> Attempt:
    raise OSError(text)


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
async def test_chance_spreads_the_calls_that_are_repeated() -> None:
    house = House()
    house.webhooks.status["hooks.example"] = 500
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(2)
    told = house.webhook("hooks.example-0")
    assert told.next_at == told.attempts[0].at + 5.5


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
async def test_a_call_whose_claim_took_too_long_is_left_to_who_claims_it_next() -> None:
    house = House()
    await house.end_with(HOOK)
    (due,) = house.store.jobs.values()
    house.store.trouble.seconds = REACH + 1
    calls = WebhookCalls(JobRecords(house.store), house.webhooks, clock=house.clock, chance=lambda: 0.5)
    assert await calls.begin(due)
    house.store.trouble.seconds = 0.0
    await asyncio.sleep(1)
    assert house.called() == {}
    async with house.kept():
        await asyncio.sleep(CLAIM - REACH)
    assert house.called() == {"hooks.example": 1}


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
async def test_a_call_that_cannot_be_recorded_while_it_is_claimed_is_made_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 20.0
    await house.end_with(HOOK)
    async with house.kept():
        await asyncio.sleep(1)
        house.store.trouble.down = True
        await asyncio.sleep(CLAIM)
        assert "no record of the call" in caplog.text
        house.store.trouble.down = False
        await asyncio.sleep(30)
    assert [message_id for _, message_id, _ in house.webhooks.called] == ["hooks.example-0:0"] * 2
    told = house.webhook("hooks.example-0")
    assert (len(told.attempts), told.delivered) == (1, True)


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
async def test_a_call_that_returns_after_a_replay_says_nothing_of_the_end_to_come() -> None:
    house = House()
    house.webhooks.seconds["hooks.example"] = 10.0
    await house.end(await house.accept("a", HOOK), failed=1)
    async with house.kept():
        await asyncio.sleep(5)
        await house.store.save([Change(house.store.jobs["a"].replayed(house.clock()))])
        await asyncio.sleep(20)
    told = house.webhook("a")
    assert [each.status for each in told.attempts] == [200]
    assert (told.planned, told.delivered) == (0, False)


@virtual_time
async def test_an_end_that_a_replay_has_undone_is_not_told() -> None:
    house = House()
    await house.end(await house.accept("a", HOOK), failed=1)
    due = house.store.jobs["a"]
    await house.store.save([Change(due.replayed(house.clock()))])
    calls = WebhookCalls(JobRecords(house.store), house.webhooks, clock=house.clock, chance=lambda: 0.5)
    assert not await calls.begin(due)
    await calls.aclose()
    assert house.called() == {}


@virtual_time
async def test_what_was_delivered_is_not_when_a_person_asks_for_it_again_and_it_fails() -> None:
    house = House()
    await house.end(await house.accept("a", HOOK))
    async with house.kept():
        await asyncio.sleep(2)
        assert house.webhook("a").delivered
        house.webhooks.status["hooks.example"] = 500
        again = house.webhook("a").scheduled(house.clock())
        await house.store.save([Change(house.store.jobs["a"].notified(again, house.clock()))])
        await asyncio.sleep(2)
    assert [each.status for each in house.webhook("a").attempts] == [200, 500]
    assert not house.webhook("a").delivered


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
