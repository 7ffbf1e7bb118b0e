"""One configured model server, as the fleet knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from domain.fleet import ServerState
from domain.prediction import ModelRef
from domain.selection import PeakEwma

if TYPE_CHECKING:
    from collections.abc import Iterable

    from domain.fleet import ServedModel
    from domain.ports import Predictor, ServerProbe


@dataclass(slots=True, eq=False)
class Server:
    """One configured model server: how to reach it, what it last said of itself, and its load."""

    name: str
    host: str
    port: int
    predict: Predictor
    probe: ServerProbe
    state: ServerState = field(default_factory=ServerState)
    load: PeakEwma = field(default_factory=PeakEwma)
    answered: set[ModelRef] = field(default_factory=set)  # since it was last asked
    denied: set[ModelRef] = field(default_factory=set)  # it said so, of what it was believed to have
    losses: int = 0
    late: bool = False  # it did not say in time how it is, but it has answered requests

    def serves(self, model: ModelRef) -> Iterable[ServedModel]:
        """The versions of `model` this server has, ready or not; only the default where none is asked."""
        if model in self.denied:
            return
        for served in self.state.models:
            wanted = served.default if model.version is None else served.version in {None, model.version}
            if served.name == model.name and wanted:
                yield served

    def why_not(self, model: ModelRef) -> str | None:
        """Why this server cannot answer for `model` now, in one clause; None where it can."""
        if self.state.problem is not None:
            return self.state.problem
        served = next(iter(self.serves(model)), None)
        if served is None:
            return f"does not serve {model}"
        if not served.workers_ready:
            return f"has no ready worker for {model} ({served.workers} configured)"
        return self.state.failing.get(ModelRef(served.name, served.version))

    def in_trouble(self) -> bool:
        """Whether it is late to say how it is, or anything it serves cannot be answered now."""
        if self.late or self.summary() != "ok":
            return True
        return any(not model.workers_ready for model in self.state.models)

    def summary(self) -> str:
        """What is wrong with it, or "ok"."""
        return self.state.problem or "; ".join(self.state.failing.values()) or "ok"
