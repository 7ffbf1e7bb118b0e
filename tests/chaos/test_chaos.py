"""Nothing accepted is lost, whatever dies. CHAOS_JOBS and CHAOS_KILLS say how much of it (`make chaos`)."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.chaos.callers import Callers
from tests.chaos.stage import Stage, distributed, embedded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.processes import RunningTorchServe

JOBS = int(os.environ.get("CHAOS_JOBS", "2000"))
KILLS = int(os.environ.get("CHAOS_KILLS", "8"))
SETTLE = 180.0  # seconds after the last kill within which all jobs have to be over


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, tmp_path: Path, own_torchserve: RunningTorchServe
) -> Iterator[Stage]:
    build = {"distributed": distributed, "embedded": embedded}[request.param]
    stage = build(tmp_path, own_torchserve)
    yield stage
    stage.stop()


@pytest.mark.parametrize("stage", ["distributed", "embedded"], indirect=True)
async def test_whatever_is_killed_every_accepted_job_ends_once_and_rightly(
    stage: Stage, request: pytest.FixtureRequest
) -> None:
    seed = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(10**6)
    callers, kills = Callers(stage.url), Counter[str]()
    began = time.monotonic()
    await _mayhem(stage, callers, random.Random(seed), kills)
    submitted = time.monotonic() - began
    stuck = await callers.settle(SETTLE)
    settled = time.monotonic() - began
    await callers.look(
        [number for number in callers.accepted if number not in stuck]
    )  # nothing changes any more

    wrong = callers.wrong()
    report = {
        "shelf": request.node.callspec.id,
        "seed": seed,
        "kills": dict(kills),
        "accepted": len(callers.accepted),
        "over": dict(callers.statuses),
        "stuck": len(stuck),
        "wrong": len(wrong),
        "changed": len(callers.changed),
        "worked twice": callers.twice,
        "refused, and tried again": dict(callers.refused),
        "seconds to submit, to end": (round(submitted), round(settled)),
    }
    print("\n" + "\n".join(f"  {what:26} {value}" for what, value in report.items()))  # noqa: T201  the table
    assert len(callers.accepted) == JOBS
    assert not stuck, [callers.accepted[number] for number in stuck][:5]
    assert not wrong, [callers.outcomes[number] for number in wrong][:5]
    assert not callers.changed


async def _mayhem(stage: Stage, callers: Callers, chance: random.Random, kills: Counter[str]) -> None:
    """Submit all jobs in as many bursts as there are kills, each with a kill in its midst."""
    names: list[str] = []
    while len(names) < KILLS:
        names += chance.sample(list(stage.parts), len(stage.parts))
    over = asyncio.Event()
    witness = asyncio.create_task(_witness(callers, chance, over))
    try:
        for burst in range(KILLS):
            numbers = range(JOBS * burst // KILLS, JOBS * (burst + 1) // KILLS)
            submitting = asyncio.create_task(callers.submit(numbers))
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            part = stage.parts[names[burst]]
            await asyncio.to_thread(part.kill)
            kills[names[burst]] += 1
            await asyncio.sleep(chance.uniform(0.0, 1.0))
            await asyncio.to_thread(part.start)
            await submitting
    finally:
        over.set()
        await witness


async def _witness(callers: Callers, chance: random.Random, over: asyncio.Event) -> None:
    """Read some jobs while all this goes on, to see whether they are still the same at the end.

    Not cancelled: a connection that is being opened then would never be closed.
    """
    while not over.is_set():
        known = list(callers.accepted)
        await callers.look(chance.sample(known, min(50, len(known))))
        await asyncio.sleep(0.5)
