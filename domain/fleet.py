"""What model servers say of themselves, as values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.prediction import ModelRef


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model on one server.

    `version` is None where the server cannot be asked for it.
    `workers_ready` counts those that can answer now, of `workers`;
    `queue_free` is how many more requests the server would accept, None where it cannot be asked.
    """

    name: str
    version: str | None
    default: bool = True
    workers: int = 1
    workers_ready: int = 1
    queue_free: int | None = None


NOT_ASKED = "not asked yet"


@dataclass(frozen=True, slots=True)
class ServerState:
    """What is known of a server. `problem` says why it cannot be used, None where it can.

    `failing` says why of each model that did not answer its canary prediction.
    """

    models: tuple[ServedModel, ...] = ()
    problem: str | None = NOT_ASKED
    failing: Mapping[ModelRef, str] = field(default_factory=dict)
