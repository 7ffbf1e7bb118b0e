"""Whether the gateway can do its work, and what each part says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from application.catalogue import FRESH, PATIENCE
from domain.prediction import ModelRef

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from application.fleet import Fleet


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
