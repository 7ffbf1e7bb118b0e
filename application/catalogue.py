"""What is served: every model, its versions, and who can answer for them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from domain.errors import ModelNotFound
from domain.prediction import ModelRef

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from application.fleet import Fleet

FRESH = 1.0  # seconds: how old an answer may be that is given as the truth
PATIENCE = 0.5  # seconds to wait for one: an orchestrator's probe gives up after a second
READY = "ready"


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One version of a model; `servers` says READY or why not, for each server by name.

    `version` is None where no server says, or none serves the model.
    """

    version: str | None
    default: bool
    workers: int
    servers: Mapping[str, str]

    @property
    def ready(self) -> bool:
        return READY in self.servers.values()


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model and the names of its policies, outermost first; the default version comes first."""

    name: str
    versions: tuple[VersionEntry, ...]
    policies: tuple[str, ...]

    @property
    def ready(self) -> bool:
        return any(version.ready for version in self.versions)


class Catalogue:
    """Every model that is served, or that has to be (`required`), as of a second ago.

    A server that is slow to say counts as what it said before.
    """

    def __init__(
        self, fleet: Fleet, required: Sequence[str], policies: Callable[[str], tuple[str, ...]]
    ) -> None:
        self._fleet = fleet
        self._required = tuple(required)
        self._policies = policies

    async def models(self) -> tuple[ModelEntry, ...]:
        """All models, by name."""
        await self._fleet.refresh(max_age=FRESH, wait=PATIENCE)
        defaults = {(m.name, m.version) for m in self._fleet.models() if m.default}
        served = {(m.name, m.version) for m in self._fleet.models()}
        missing = {(name, None) for name in self._required} - {(name, None) for name, _ in served}
        rows = [
            (name, version, (name, version) in defaults or version is None)
            for name, version in served | missing
        ]
        rows.sort(key=_name_default_version)
        return tuple(
            ModelEntry(name, tuple(self._version(*row) for row in group), self._policies(name))
            for name, group in groupby(rows, key=lambda row: row[0])
        )

    async def model(self, name: str) -> ModelEntry:
        """One model. Raises ModelNotFound."""
        found = await self.models()
        for entry in found:
            if entry.name == name:
                return entry
        names = ", ".join(entry.name for entry in found) or "none"
        message = f"No server serves a model named {name!r}. Served: {names}."
        raise ModelNotFound(message)

    def _version(self, name: str, version: str | None, default: bool) -> VersionEntry:  # noqa: FBT001
        model = ModelRef(name, version)
        servers = {s.name: s.why_not(model) or READY for s in self._fleet.servers}
        workers = sum(m.workers_ready for s in self._fleet.servers for m in s.serves(model))
        return VersionEntry(version, default, workers, servers)


def _name_default_version(row: tuple[str, str | None, bool]) -> tuple[str, bool, str]:
    name, version, default = row
    return name, not default, str(version)
