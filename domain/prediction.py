"""A request for predictions, and what came back: the two types that pass through the one port.

Their fields are Final: the type checker freezes them, as `frozen=True` would cost microseconds a request.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"


class ModelRef(NamedTuple):
    """A model by name; `version` None means whichever its server calls the default."""

    name: str
    version: str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}/{self.version}"


class ServerAddress(NamedTuple):
    """The one server a caller insists on; it must be a configured one."""

    host: str | None = None
    port: int | None = None

    def names(self, host: str, port: int) -> bool:
        """Whether `host` and `port` are what the caller asked for; what is None matches everything."""
        return self.host in {None, host} and self.port in {None, port}


ANY_SERVER = ServerAddress()


class CacheControl(NamedTuple):
    """What a caller allows the cache: to answer (`read`), to remember the answer (`store`)."""

    read: bool = True
    store: bool = True


CACHE = CacheControl()


@dataclass(slots=True)
class PredictionRequest:
    """One or more instances for one model.

    `deadline` is a time of the event loop's clock, in seconds; None until one is set.
    `partition` names the caller's share of the cache: callers of different partitions share no answer.
    `bulk` work may wait for interactive work. `fingerprints` are those of the instances, once somebody
    has needed them (fingerprint.fingerprints).
    """

    model: Final[ModelRef]
    instances: Final[tuple[Json, ...]]
    parameters: Final[Mapping[str, Json]] = field(default_factory=dict)
    server: Final[ServerAddress] = ANY_SERVER
    deadline: Final[float | None] = None
    partition: Final[str] = ""
    cache: Final[CacheControl] = CACHE
    bulk: Final[bool] = False
    fingerprints: Final[tuple[bytes, ...]] = ()

    def to(self, model: ModelRef, fingerprints: tuple[bytes, ...] = ()) -> PredictionRequest:
        """The same request to another model, or to one of its versions: a question of other fingerprints."""
        return self._with(model, self.instances, self.deadline, fingerprints)

    def until(self, deadline: float) -> PredictionRequest:
        """The same request with this deadline."""
        return self._with(self.model, self.instances, deadline, self.fingerprints)

    def only(self, wanted: Collection[int], fingerprints: tuple[bytes, ...]) -> PredictionRequest:
        """The same request for the instances at `wanted` alone; `fingerprints` are those of all."""
        instances = tuple([self.instances[i] for i in wanted])
        return self._with(self.model, instances, self.deadline, tuple([fingerprints[i] for i in wanted]))

    def _with(
        self,
        model: ModelRef,
        instances: tuple[Json, ...],
        deadline: float | None,
        fingerprints: tuple[bytes, ...],
    ) -> PredictionRequest:
        """A copy, of the same class; `dataclasses.replace` would take four times as long."""
        return type(self)(
            model,
            instances,
            self.parameters,
            self.server,
            deadline,
            self.partition,
            self.cache,
            self.bulk,
            fingerprints,
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Stands in the place of a prediction: the model refused this instance, not its neighbours.

    `code` is the model's own, 400 to 499.
    """

    code: int
    message: str


Prediction: TypeAlias = "Json | Refusal"


@dataclass(slots=True)
class CacheUse:
    """What the cache did for one request: `hits` of its `of` instances came from there.

    `ttl` is how long the first of them stays, in seconds; `stored` says that all others were remembered;
    `bypassed` that the caller did not want to hear of the cache.
    """

    hits: Final[int]
    of: Final[int]
    ttl: Final[float | None] = None
    stored: Final[bool] = False
    bypassed: Final[bool] = False


@dataclass(slots=True)
class PredictionResult:
    """One prediction (or refusal) for each instance, in order, from the version in `model`.

    `server_seconds` is how long the server took to answer; `cache` is None where none was asked;
    `collapsed` says that some of it was work which another request had begun.
    """

    model: Final[ModelRef]
    predictions: Final[tuple[Prediction, ...]]
    server_seconds: Final[float] = 0.0
    cache: Final[CacheUse | None] = None
    collapsed: Final[bool] = False

    def split(self, sizes: Sequence[int]) -> tuple[PredictionResult, ...]:
        """Undo `merge`: consecutive parts of `sizes` predictions each."""
        if sum(sizes) != len(self.predictions):
            message = f"{len(self.predictions)} predictions cannot be split into {sizes}"
            raise ValueError(message)
        parts = []
        start = 0
        for size in sizes:
            predictions = self.predictions[start : start + size]
            parts.append(
                PredictionResult(self.model, predictions, self.server_seconds, self.cache, self.collapsed)
            )
            start += size
        return tuple(parts)


def merge(requests: Sequence[PredictionRequest]) -> PredictionRequest:
    """One request with the instances of all, in order, and the latest of their deadlines.

    What concerns the callers rather than the model (partition, cache, bulk) is left behind.
    Raises ValueError unless all ask the same of the same model.
    """
    first = requests[0]
    if any(_question(request) != _question(first) for request in requests):
        message = "only requests for one model, with equal parameters, can travel together"
        raise ValueError(message)
    deadlines = [r.deadline for r in requests if r.deadline is not None]
    return PredictionRequest(
        first.model,
        tuple(instance for r in requests for instance in r.instances),
        first.parameters,
        first.server,
        max(deadlines) if len(deadlines) == len(requests) else None,
    )


def _question(request: PredictionRequest) -> tuple[ModelRef, str, ServerAddress]:
    """All but the instances; as text, because Python thinks that True equals 1."""
    return request.model, json.dumps(request.parameters, sort_keys=True), request.server
