from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from application.gathering import Gathering
from domain.errors import InternalError, Overloaded, QueueUnavailable
from tests.virtual_time import VirtualLoop, now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass
class Work:
    """Doubles numbers, a second a bundle; raises for those with an item of `bad`."""

    bad: set[int] = field(default_factory=set)
    error: BaseException = field(default_factory=QueueUnavailable)
    bundles: list[list[int]] = field(default_factory=list)

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.bundles.append(list(items))
        await asyncio.sleep(1.0)
        if self.bad & set(items):
            raise self.error
        return [2 * item for item in items]


async def one(gathering: Gathering[int, int], item: int) -> int:
    return await gathering(item)


@virtual_time
async def test_who_is_alone_leaves_at_once() -> None:
    work = Work()
    gathering = Gathering(work, most=4)
    assert await gathering(1) == 2
    assert now() == 1.0


@virtual_time
async def test_who_comes_again_the_moment_he_was_answered_leaves_at_once_too() -> None:
    work = Work()
    gathering = Gathering(work, most=4)
    async with asyncio.timeout(10.0):
        assert [await gathering(i) for i in range(3)] == [0, 2, 4]
    assert now() == 3.0


@virtual_time
async def test_those_who_come_meanwhile_leave_together_in_order_when_the_one_before_is_back() -> None:
    work = Work()
    gathering = Gathering(work, most=3)
    first = asyncio.create_task(one(gathering, 0))
    await asyncio.sleep(0.5)
    others = [one(gathering, i) for i in range(1, 6)]

    assert await asyncio.gather(first, *others) == [0, 2, 4, 6, 8, 10]
    assert work.bundles == [[0], [1, 2, 3], [4, 5]]
    assert now() == 3.0


@virtual_time
async def test_as_many_bundles_as_allowed_are_under_way() -> None:
    work = Work()
    gathering = Gathering(work, most=1, at_once=2)
    assert await asyncio.gather(*map(gathering, range(4))) == [0, 2, 4, 6]
    assert now() == 2.0


@virtual_time
async def test_an_error_reaches_all_of_its_bundle_and_nobody_else() -> None:
    work = Work(bad={1})
    gathering = Gathering(work, most=2)
    told = await asyncio.gather(*map(gathering, range(5)), return_exceptions=True)
    assert [*map(type, told)] == [QueueUnavailable, QueueUnavailable, int, int, int]
    assert await gathering(7) == 14


@virtual_time
async def test_a_cancelled_caller_disturbs_nobody_and_its_item_travels_on() -> None:
    work = Work()
    gathering = Gathering(work, most=4)
    out, waiting, other = (asyncio.create_task(one(gathering, i)) for i in range(3))
    late = asyncio.create_task(one(gathering, 3))
    await asyncio.sleep(0.5)
    late_too = asyncio.create_task(one(gathering, 4))
    await asyncio.sleep(0)
    out.cancel()
    late_too.cancel()

    told = await asyncio.gather(out, waiting, other, late, late_too, return_exceptions=True)
    await gathering.aclose()

    assert [*map(type, told)] == [asyncio.CancelledError, int, int, int, asyncio.CancelledError]
    assert work.bundles == [[0, 1, 2, 3], [4]]


@virtual_time
async def test_an_error_finds_those_of_its_bundle_who_have_not_gone() -> None:
    gathering = Gathering(Work(bad={1}), most=2)
    gone, other, next_one = (asyncio.create_task(one(gathering, i)) for i in range(3))
    await asyncio.sleep(0.5)
    gone.cancel()
    told = await asyncio.gather(gone, other, next_one, return_exceptions=True)
    assert [*map(type, told)] == [asyncio.CancelledError, QueueUnavailable, int]


@virtual_time
async def test_closing_waits_until_all_is_done_that_was_asked_for() -> None:
    work = Work()
    gathering = Gathering(work, most=1)
    asked = [gathering(i) for i in range(3)]
    await gathering.aclose()
    assert [each.result() for each in asked] == [0, 2, 4]
    assert now() == 3.0
    await gathering.aclose()


@virtual_time
async def test_closing_waits_for_what_follows_from_what_it_waits_for() -> None:
    gathering = Gathering(Work(), most=1)

    async def twice() -> int:
        return await gathering(await gathering(1))

    asking = asyncio.create_task(twice())
    await asyncio.sleep(0.5)
    await gathering.aclose()
    assert now() == 2.0
    assert await asking == 4


@virtual_time
async def test_more_than_may_wait_are_refused_and_those_who_wait_are_not() -> None:
    work = Work()
    gathering = Gathering(work, most=2, waiting=2)
    asked = [gathering(0)]
    await asyncio.sleep(0)
    asked += [gathering(1), gathering(2)]
    with pytest.raises(Overloaded):
        gathering(3)
    assert await asyncio.gather(*asked) == [0, 2, 4]
    assert await gathering(4) == 8


@pytest.mark.parametrize("wrong", [[], [1], [1, 2, 3]])
@virtual_time
async def test_results_that_are_not_one_for_each_are_an_error_and_not_a_wait_for_ever(
    wrong: list[int],
) -> None:
    async def work(items: Sequence[int]) -> list[int]:
        await asyncio.sleep(1.0)
        return wrong if len(items) == 2 else [2 * item for item in items]

    gathering = Gathering(work, most=2)
    told = await asyncio.gather(*map(gathering, range(3)), return_exceptions=True)
    assert [*map(type, told)] == [InternalError, InternalError, int]


@virtual_time
async def test_work_that_is_cancelled_from_inside_leaves_nobody_waiting() -> None:
    work = Work(bad={0}, error=asyncio.CancelledError())
    gathering = Gathering(work, most=1)
    told = await asyncio.gather(*map(gathering, range(2)), return_exceptions=True)
    assert [*map(type, told)] == [asyncio.CancelledError] * 2
    assert await gathering(2) == 4


def test_the_end_of_the_loop_ends_all_who_wait() -> None:
    told: list[BaseException] = []

    async def caller(gathering: Gathering[int, int], item: int) -> None:
        try:
            await asyncio.shield(gathering(item))
        except asyncio.CancelledError as error:
            told.append(error)
            raise

    async def main() -> None:
        gathering = Gathering(Work(), most=1)
        tasks = [asyncio.create_task(caller(gathering, i)) for i in range(3)]
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in tasks)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main())
    assert len(told) == 3
