from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

import pytest

from application.job_watch import LAST_WAIT, LOOK_AGAIN, JobWatch
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Sequence


async def waits(watch: JobWatch, job: str, until: float = math.inf) -> tuple[bool, float]:
    """Whether there was time left, and when it heard."""
    with watch.watch(job) as watcher:
        return await watcher.changed(until), now()


async def waits_to_the_end(watch: JobWatch, until: float) -> float:
    """When there was no time left."""
    with watch.watch("j") as watcher:
        while await watcher.changed(until):
            pass
    return now()


@pytest.mark.parametrize("hint", [["j"], ["i", "j", "j"], None])
@virtual_time
async def test_a_hint_wakes_all_who_wait_for_that_job(hint: Sequence[str] | None) -> None:
    watch = JobWatch()
    waiting = [asyncio.create_task(waits(watch, "j")) for _ in range(3)]
    await asyncio.sleep(1.0)
    watch.heard(hint)
    assert await asyncio.gather(*waiting) == [(True, 1.0)] * 3


@virtual_time
async def test_a_hint_about_another_job_wakes_nobody() -> None:
    watch = JobWatch()
    waiting = asyncio.create_task(waits(watch, "j"))
    await asyncio.sleep(1.0)
    watch.heard(["k"])
    assert await waiting == (True, LOOK_AGAIN)


@virtual_time
async def test_a_hint_between_the_look_and_the_wait_is_not_missed_and_heard_once() -> None:
    watch = JobWatch()
    with watch.watch("j") as watcher:
        watch.heard(["j"])
        watch.heard(None)
        await asyncio.sleep(1.0)
        assert await watcher.changed()
        assert now() == 1.0
        assert await watcher.changed()
        assert now() == 1.0 + LOOK_AGAIN


@virtual_time
async def test_two_hints_on_the_way_to_one_who_waits_do_no_harm() -> None:
    watch = JobWatch()
    with watch.watch("j") as watcher:
        waiting = asyncio.create_task(watcher.changed())
        await asyncio.sleep(1.0)
        watch.heard(["j"])
        watch.heard(None)
        assert await waiting
        await watcher.changed()
        assert now() == 1.0 + LOOK_AGAIN


@virtual_time
async def test_who_hears_nothing_looks_again_after_a_while() -> None:
    assert await waits(JobWatch(), "j", until=100.0) == (True, LOOK_AGAIN)


@pytest.mark.parametrize("until", [0.0, 2.0, LOOK_AGAIN])
@virtual_time
async def test_nobody_waits_longer_than_he_wants_to(until: float) -> None:
    assert await waits(JobWatch(), "j", until) == (False, until)


@virtual_time
async def test_after_a_stop_nobody_waits_much_longer_and_later_nobody_waits() -> None:
    watch = JobWatch()
    waiting = [asyncio.create_task(waits_to_the_end(watch, until)) for until in (math.inf, 100.0)]
    await asyncio.sleep(1.0)
    watch.stop()
    await asyncio.sleep(LAST_WAIT / 2)
    watch.stop()  # it is the first that counts
    end = 1.0 + LAST_WAIT

    assert await asyncio.gather(*waiting, waits_to_the_end(watch, math.inf)) == [end] * 3
    assert await waits(watch, "j") == (False, end)
    watch.heard(None)
    assert await waits(watch, "j", until=100.0) == (False, end)


@virtual_time
async def test_a_stop_makes_all_look_at_once_and_hints_are_heard_in_what_is_left() -> None:
    watch = JobWatch()
    with watch.watch("j") as watcher:
        asyncio.get_running_loop().call_later(0.5, watch.stop)
        asyncio.get_running_loop().call_later(0.5 + LAST_WAIT / 2, watch.heard, ["j"])

        assert (await watcher.changed(), now()) == (True, 0.5)
        assert (await watcher.changed(), now()) == (True, 0.5 + LAST_WAIT / 2)
        assert (await watcher.changed(), now()) == (False, 0.5 + LAST_WAIT)


@virtual_time
async def test_who_does_not_wait_any_more_leaves_nothing_behind() -> None:
    watch = JobWatch()
    waiting = [asyncio.create_task(waits(watch, job)) for job in "jjk"]
    await asyncio.sleep(1.0)
    waiting[0].cancel()
    waiting[2].cancel()
    await asyncio.wait([waiting[0], waiting[2]])
    watch.heard(["j", "k"])

    assert await waiting[1] == (True, 1.0)
    assert watch._waiting == {}


@virtual_time
async def test_ten_thousand_who_wait_cost_nothing_until_their_job_changes() -> None:
    watch = JobWatch()
    waiting = [asyncio.create_task(waits(watch, str(i))) for i in range(10_000)]
    await asyncio.sleep(0.1)

    began = time.process_time()
    for i in range(1000):
        watch.heard([str(i)])
    assert time.process_time() - began < 0.1  # 100 µs each: it is a few
    watch.heard(None)

    assert {at for _, at in await asyncio.gather(*waiting)} == {0.1}
    assert watch._waiting == {}
