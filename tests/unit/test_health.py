"""How components are: asked side by side, at most once a second, and never waited for long."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from application.health import Components
from domain.ports import Condition
from tests.virtual_time import now, virtual_time

SILENT = "It did not answer within 1 s."


@dataclass
class FakeComponent:
    """A Component that takes `seconds` to say its `problem`, and how often it was asked before."""

    seconds: float = 0.0
    problem: str | None = None
    asked: int = 0
    cancelled: int = 0

    async def condition(self) -> Condition:
        self.asked += 1
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return Condition(self.problem, {"before": self.asked - 1})


class BrokenComponent:
    """A Component with a mistake in it."""

    async def condition(self) -> Condition:
        raise KeyError("hunter2")


@virtual_time
async def test_every_component_says_how_it_is() -> None:
    components = Components({"a": FakeComponent(), "b": FakeComponent(problem="It is gone.")})

    assert await components.conditions() == {
        "a": Condition(None, {"before": 0}),
        "b": Condition("It is gone.", {"before": 0}),
    }


@virtual_time
async def test_a_component_is_asked_once_a_second_however_many_want_to_know() -> None:
    component = FakeComponent(seconds=0.1)
    components = Components({"a": component})

    await asyncio.gather(*(components.conditions() for _ in range(100)))
    await asyncio.sleep(0.9)
    await components.conditions()
    assert component.asked == 1
    await asyncio.sleep(0.2)

    assert await components.conditions() == {"a": Condition(None, {"before": 1})}


@virtual_time
async def test_components_that_hang_are_waited_for_side_by_side_and_not_asked_again_meanwhile() -> None:
    hanging = [FakeComponent(seconds=60.0) for _ in range(3)]
    components = Components({str(number): each for number, each in enumerate(hanging)})

    for _ in range(3):
        begun = now()
        assert list((await components.conditions()).values()) == [Condition(SILENT)] * 3
        assert now() - begun == 1.0

    assert [each.asked for each in hanging] == [1, 1, 1]
    await components.aclose()
    assert [each.cancelled for each in hanging] == [1, 1, 1]


@virtual_time
async def test_a_component_that_hangs_does_not_hide_how_the_others_are() -> None:
    components = Components({"slow": FakeComponent(seconds=60.0), "quick": FakeComponent()})

    assert await components.condition("quick") == Condition(None, {"before": 0})
    assert (await components.conditions())["slow"] == Condition(SILENT)
    await components.aclose()


@virtual_time
async def test_a_component_that_was_slow_is_believed_again_when_it_answers() -> None:
    component = FakeComponent(seconds=1.5)
    components = Components({"a": component})
    assert await components.conditions() == {"a": Condition(SILENT)}

    begun = now()
    assert await components.conditions() == {"a": Condition(None, {"before": 0})}

    assert now() - begun == 0.5


@virtual_time
async def test_a_caller_who_leaves_does_not_end_the_asking() -> None:
    component = FakeComponent(seconds=0.5)
    components = Components({"a": component})
    impatient = asyncio.create_task(components.conditions())
    await asyncio.sleep(0.1)
    impatient.cancel()

    assert await components.conditions() == {"a": Condition(None, {"before": 0})}
    assert component.cancelled == 0


@virtual_time
async def test_a_mistake_of_ours_is_a_problem_of_that_component_alone() -> None:
    components = Components({"broken": BrokenComponent(), "b": FakeComponent()})

    found = await components.conditions()

    assert found["broken"] == Condition("It could not be asked (KeyError).")
    assert found["b"].problem is None
