"""Whether the gateway can do its work, and what each part says of itself."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from application.catalogue import FRESH, PATIENCE
from domain.ports import Condition
from domain.prediction import ModelRef

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from application.fleet import Fleet
    from domain.ports import Component

LOGGER = logging.getLogger("dispatcher.health")
LONGEST = 1.0  # seconds that anybody waits for what a component says of itself


@dataclass(frozen=True, slots=True)
class Health:
    """`reasons` say what keeps the gateway from its work; `servers` what each says of itself, by name."""

    reasons: tuple[str, ...]
    servers: Mapping[str, str]

    @property
    def ready(self) -> bool:
        return not self.reasons


class HealthService:
    """Asks the fleet, and holds what it says against what is required.

    `required` are the models that have to be served; where none is named, any one model is enough.
    """

    def __init__(self, fleet: Fleet, required: Sequence[str]) -> None:
        self._fleet = fleet
        self._required = tuple(required)

    async def check(self) -> Health:
        """The state of everything as of a second ago; a server that is slow to say counts as before."""
        await self._fleet.refresh(max_age=FRESH, wait=PATIENCE)
        servers = {s.name: s.summary() for s in self._fleet.servers}
        return Health(tuple(self._reasons()), servers)

    def _reasons(self) -> list[str]:
        if self._required:
            wanted = [ModelRef(name) for name in self._required]
            return [self._fleet.why_not(model) for model in wanted if not self._fleet.ready(model)]
        served = {ModelRef(m.name, m.version) for m in self._fleet.models()}
        if any(self._fleet.ready(model) for model in served):
            return []
        problems = (f"{s.name}: {s.state.problem or 'no model is ready'}" for s in self._fleet.servers)
        return [f"No model is ready. {'; '.join(problems)}"]


class Components:
    """Asks components how they are, as of a second ago; they are by name.

    Each is asked once for all who want to know. Whoever makes it closes it.
    """

    def __init__(self, components: Mapping[str, Component]) -> None:
        self._watched = {name: _Watched(name, component) for name, component in components.items()}

    async def conditions(self) -> Mapping[str, Condition]:
        """How all of them are, after a second at most: one that is slow to say has that as its problem."""
        found = await asyncio.gather(*(self.condition(name) for name in self._watched))
        return dict(zip(self._watched, found, strict=True))

    async def condition(self, name: str) -> Condition:
        """How one of them is. Raises KeyError."""
        return await self._watched[name].condition()

    async def aclose(self) -> None:
        """Ask no more."""
        await asyncio.gather(*(each.aclose() for each in self._watched.values()))


class _Watched:
    def __init__(self, name: str, component: Component) -> None:
        self._name = name
        self._component = component
        self._known = Condition("It has not answered yet.")
        self._known_at = float("-inf")
        self._asking: asyncio.Task[None] | None = None

    async def condition(self) -> Condition:
        if asyncio.get_running_loop().time() - self._known_at < FRESH:
            return self._known
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        # Nobody cancels it: what gives up a connection would take it from those who work.
        answered, _ = await asyncio.wait([self._asking], timeout=LONGEST)
        return self._known if answered else Condition(f"It did not answer within {LONGEST:g} s.")

    async def aclose(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])

    async def _ask(self) -> None:
        try:
            self._known = await self._component.condition()
        except Exception as error:  # a mistake of ours must not hide how the others are
            LOGGER.exception("could not ask %s", self._name)
            self._known = Condition(f"It could not be asked ({type(error).__name__}).")
        finally:
            self._asking = None
        self._known_at = asyncio.get_running_loop().time()
