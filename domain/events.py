"""What an observer may hear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domain.prediction import ModelRef


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """A server failed to answer a request for `model`."""

    server: str
    model: ModelRef
    reason: str


@dataclass(frozen=True, slots=True)
class ServerLost:
    """A server that could be used cannot be used any more."""

    server: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerFound:
    """A server can be used, for the first time or again; `models` are those with a ready worker."""

    server: str
    models: tuple[str, ...]


Event = AttemptFailed | ServerLost | ServerFound
