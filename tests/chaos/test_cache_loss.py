"""The cache is a Redis of its own: its loss costs hits, and no job."""

from __future__ import annotations

import asyncio
import time
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.chaos.callers import MODEL, Callers, instance
from tests.chaos.stage import Stage, distributed
from tests.integration.gate import Gate
from tests.integration.redis_server import RunningRedis

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.processes import RunningTorchServe

JOBS = 100  # before its loss, and as many after it
PATIENCE = 60.0  # seconds


@pytest.fixture
def cache(tmp_path: Path) -> RunningRedis:
    """The stage starts it, and ends it."""
    return RunningRedis(tmp_path)


@pytest.fixture
def stage(tmp_path: Path, own_torchserve: RunningTorchServe, cache: RunningRedis) -> Iterator[Stage]:
    stage = distributed(tmp_path, own_torchserve, cache)
    yield stage
    stage.stop()


async def test_a_cache_that_is_killed_while_jobs_are_worked_costs_none_of_them_and_its_hits_come_back(
    stage: Stage, cache: RunningRedis, tmp_path: Path
) -> None:
    callers, gate, others = Callers(stage.url), Gate(tmp_path), count(2 * JOBS)
    await _until_a_jobs_answer_is_a_hit(callers, others)

    async with callers.client() as client:
        held = (await client.post("/jobs", json={"model_name": MODEL, "instances": [gate.held()]})).json()
        await asyncio.to_thread(gate.until_begun)
        await callers.submit(range(JOBS))  # they wait behind it, in the model's queue and in RabbitMQ
        await asyncio.to_thread(cache.kill)
        gate.open()
        await callers.submit(range(JOBS, 2 * JOBS))
        stuck = await callers.settle(PATIENCE)
        first = (await client.get(held["urls"]["self"], headers={"prefer": "wait=10"})).json()

    await asyncio.to_thread(cache.start)
    await _until_a_jobs_answer_is_a_hit(callers, others)

    assert not stuck
    assert not callers.wrong()
    assert callers.twice == 0
    assert first["status"] == "succeeded"


async def _until_a_jobs_answer_is_a_hit(callers: Callers, numbers: Iterator[int]) -> None:
    """Until the gateway knows, the first time that it is asked, what a worker was told."""
    give_up = time.monotonic() + PATIENCE
    while not await _is_hit(callers, next(numbers)):
        assert time.monotonic() < give_up, "the gateway had no hit"


async def _is_hit(callers: Callers, number: int) -> bool:
    await callers.submit(range(number, number + 1))
    assert not await callers.settle(PATIENCE)
    async with callers.client() as client:
        body = {"model_name": MODEL, "instances": [instance(number)]}
        answer = await client.post("/dispatch_model", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"] == [instance(number)]
    return answer.headers["cache-status"].startswith("model-dispatcher; hit")
