"""How many calls of how many hosts are under way, and that none holds up another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from application import webhook_calls
from application.webhook_calls import AT_ONCE, PER_HOST
from tests.unit.job_house import HOOK, House
from tests.virtual_time import virtual_time

if TYPE_CHECKING:
    import pytest


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
async def test_a_host_is_forgotten_with_its_last_call() -> None:
    house = House()
    await house.end_with(*[f"https://h{number}.example/" for number in range(20)])
    keeper = house.keeper()
    await keeper.tidy()
    await asyncio.sleep(1)
    assert sum(house.called().values()) == 20
    assert (keeper._calls._hosts, keeper._calls._under_way) == ({}, set())


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
