"""The policies that requests for a model pass, and why in this order."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from application.pipeline import Pipeline, Policy, compose
from application.policies.admission import Admission
from application.policies.attempt_timeout import AttemptTimeout
from application.policies.balancing import Balancing
from application.policies.batching import Batching
from application.policies.caching import Caching
from application.policies.coalescing import Coalescing
from application.policies.deadline import Deadline
from application.policies.leasing import Leasing
from application.recall import Lookup, Recall
from domain.concurrency_limit import Gradient2
from infrastructure.torchserve import wire

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from application.fleet import Fleet
    from bootstrap.settings import AdmissionSettings, BatchingSettings, CachingSettings, Settings
    from domain.ports import Leases, Memory, Observer, PredictionCache
    from domain.prediction import Json, ModelRef

GATHERING = 4  # full batches for each slot: one in flight, and enough that gathers to choose from


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the policies of all models share.

    `memory` is the cache where that is in this process, `leases` is for one that processes share.
    """

    fleet: Fleet
    cache: PredictionCache
    memory: Memory | None
    leases: Leases | None
    observe: Observer


@dataclass(frozen=True, slots=True)
class Step:
    """One policy of a pipeline: its name, its numbers for people to read, and how it is made for a model."""

    name: str
    numbers: Mapping[str, float]
    make: Callable[[Surroundings, ModelRef], Policy]

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={value:g}' for name, value in self.numbers.items())})"


def pipeline(settings: Settings, around: Surroundings, model: ModelRef) -> Pipeline:
    """That of one version of one model: batches and flights cannot cross models."""
    balancing = Balancing(
        around.fleet,
        attempt=partial(compose, [step.make(around, model) for step in attempt_steps(settings, model.name)]),
        observe=around.observe,
        clock=time.monotonic,
        pick=random.sample,
    )
    known = steps(settings, model.name, versioned=model.version is not None)
    predict = compose([step.make(around, model) for step in known], balancing)
    caches = any(step.name == "Caching" for step in known)
    if not caches:
        return Pipeline(predict)
    if around.memory is None:
        return Pipeline(predict, lookup=Lookup(around.cache))
    return Pipeline(predict, recall=Recall(around.memory))


def policy_names(settings: Settings, model: str) -> tuple[str, ...]:
    """The policies that a request for `model` passes, outermost first, with their numbers."""
    balancing = f"Balancing(servers={len(settings.servers)})"
    return (*map(str, steps(settings, model)), balancing, *map(str, attempt_steps(settings, model)))


def steps(settings: Settings, model: str, *, versioned: bool = True) -> list[Step]:
    """Those around balancing, the outermost first; `versioned` where servers say which version answers."""
    chosen = settings.model(model)
    # An answer of which nobody knows the version must not be given for another version later.
    caching = chosen.caching if chosen.deterministic and versioned else None
    # Where the handler takes one instance a request, batching is left to TorchServe.
    batching = chosen.batching if chosen.payload == "instances" else None
    # Nothing may outlive the caller, so everything is inside.
    found = [_deadline(chosen.timeout, settings.http.max_timeout)]
    if caching:
        # A hit costs nothing, so it is outside admission: hits are served even when overloaded.
        found.append(_caching(caching))
    if chosen.coalescing and chosen.deterministic:
        # Equal misses share one call and hold one place.
        found.append(Step("Coalescing", {}, lambda _around, _model: Coalescing))
        if caching and settings.redis:
            # The same across processes; inside, so that this process takes one lease for all its callers.
            found.append(_leasing(caching))
    if chosen.admission:
        # Guards what is scarce, so all that needs no server is outside; bounds who waits inside.
        found.append(_admission(chosen.admission, batching))
    if batching:
        # Inside admission, and outside what concerns one attempt: a batch stays together.
        found.append(_batching(batching))
    # Balancing comes last: what follows concerns one server.
    return found


def attempt_steps(settings: Settings, model: str) -> list[Step]:
    """Those around one try on one server."""
    seconds = settings.model(model).attempt_timeout
    # One slow server must not eat the whole deadline; below balancing, so that a try is one server's.
    policy = partial(AttemptTimeout, seconds=seconds)
    return [Step("AttemptTimeout", {"seconds": seconds}, lambda _around, _model: policy)]


def _deadline(default: float, cap: float) -> Step:
    policy = partial(Deadline, default=default, cap=cap)
    return Step("Deadline", {"default": default, "cap": cap}, lambda _around, _model: policy)


def _caching(chosen: CachingSettings) -> Step:
    def make(around: Surroundings, _model: ModelRef) -> Policy:
        return partial(Caching, cache=around.cache, ttl=chosen.ttl)

    return Step("Caching", chosen.model_dump(), make)


def _leasing(chosen: CachingSettings) -> Step:
    def make(around: Surroundings, _model: ModelRef) -> Policy:
        assert around.leases is not None  # there is a Redis
        return partial(Leasing, cache=around.cache, leases=around.leases, ttl=chosen.ttl)

    return Step("Leasing", {}, make)


def _admission(chosen: AdmissionSettings, batching: BatchingSettings | None) -> Step:
    def make(around: Surroundings, model: ModelRef) -> Policy:
        def busy() -> int:
            """The instances that keep all workers busy."""
            workers = around.fleet.workers(model)
            return (
                workers if batching is None else GATHERING * batching.per_worker * batching.max_size * workers
            )

        return partial(
            Admission,
            limit=Gradient2(maximum=chosen.max_in_flight, floor=busy),
            max_waiting=chosen.max_waiting,
            bulk_share=chosen.bulk_share,
            in_order=batching is None,
            observe=around.observe,
        )

    return Step("Admission", chosen.model_dump(), make)


def _batching(chosen: BatchingSettings) -> Step:
    def make(around: Surroundings, model: ModelRef) -> Policy:
        return partial(
            Batching,
            slots=lambda: around.fleet.workers(model) * chosen.per_worker,
            max_size=chosen.max_size,
            max_cost=chosen.max_cost,
            cost=_bytes if chosen.max_cost else None,
            observe=around.observe,
        )

    return Step("Batching", chosen.model_dump(exclude_none=True), make)


def _bytes(instance: Json) -> int:
    """What an instance costs a model that pads: its length."""
    return len(wire.encode(instance))
