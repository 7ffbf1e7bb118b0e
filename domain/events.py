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
    """A server cannot be used, from the start or any more."""

    server: str
    reason: str


@dataclass(frozen=True, slots=True)
class ServerFound:
    """A server can be used, for the first time or again; `models` are those with a ready worker."""

    server: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFailing:
    """A server says that it serves `model`, but did not answer its canary prediction."""

    server: str
    model: ModelRef
    reason: str


@dataclass(frozen=True, slots=True)
class CacheLost:
    """The cache that processes share cannot be used, from the start or any more; they go on without."""

    reason: str


@dataclass(frozen=True, slots=True)
class CacheFound:
    """The cache that processes share can be used again."""


@dataclass(frozen=True, slots=True)
class JobsLost:
    """The store of the jobs that processes share cannot be used; none is accepted meanwhile."""

    reason: str


@dataclass(frozen=True, slots=True)
class JobsFound:
    """The store of the jobs can be used again."""


@dataclass(frozen=True, slots=True)
class JobsAtRisk:
    """The store of the jobs is not set up to keep them whatever happens to it; they are accepted anyway."""

    reason: str


@dataclass(frozen=True, slots=True)
class BatchSent:
    """`instances` of `requests` left for `model` together; the first had `waited` for that, in seconds."""

    model: ModelRef
    instances: int
    requests: int
    waited: float


@dataclass(frozen=True, slots=True)
class Shed:
    """A request of `instances` for `model` was refused before any work was done; thousands a second may be.

    `reason` is "full" where no more may wait, "late" where its answer would come after its deadline.
    """

    model: ModelRef
    instances: int
    reason: str


Event = (
    AttemptFailed
    | ServerLost
    | ServerFound
    | ModelFailing
    | CacheLost
    | CacheFound
    | JobsLost
    | JobsFound
    | JobsAtRisk
    | BatchSent
    | Shed
)
