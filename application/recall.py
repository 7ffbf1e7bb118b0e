"""Answering from memory at once: without a task, a timer or a turn of the event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domain.fingerprint import fingerprints, fingerprints_for
from domain.prediction import CacheUse, ModelRef, PredictionRequest, PredictionResult

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.ports import Cached, Memory, PredictionCache


class Pinned(PredictionRequest):
    """One whose caller named no version; should that in `model` be gone, another may answer."""

    __slots__ = ()

    @classmethod
    def of(cls, request: PredictionRequest, model: ModelRef, fingerprints: tuple[bytes, ...] = ()) -> Pinned:
        """The same request, for which `model` stands now."""
        return cls(
            model,
            request.instances,
            request.parameters,
            request.server,
            request.deadline,
            request.partition,
            request.cache,
            request.bulk,
            fingerprints,
        )


def named(request: PredictionRequest) -> ModelRef:
    """The model as its caller named it."""
    return ModelRef(request.model.name) if isinstance(request, Pinned) else request.model


class Recall:
    """What the Caching policy would answer to a request all of whose instances `memory` has.

    Says nothing that the pipeline would not say, and nothing where the pipeline would have to wait.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __call__(self, request: PredictionRequest, model: ModelRef) -> PredictionResult | tuple[bytes, ...]:
        """The answer of `model`, which has a version; else the request's fingerprints, if anybody looked."""
        if not request.cache.read:
            return ()
        keys = fingerprints_for(model, request)
        known = self._memory.peek(keys)
        return keys if None in known else remembered(model, known)


class Lookup:
    """The same, of a cache that has to be waited for: whether all is known without asking a model."""

    def __init__(self, cache: PredictionCache) -> None:
        self._cache = cache

    async def __call__(self, request: PredictionRequest) -> PredictionResult | None:
        """The answer, None where any of it is not remembered; the version of `request.model` is resolved."""
        if not request.cache.read:
            return None
        known = await self._cache.get(fingerprints(request))
        return None if None in known else remembered(request.model, known)


def remembered(model: ModelRef, known: Sequence[Cached | None]) -> PredictionResult:
    """The answer of `model` where all instances are `known`."""
    if len(known) == 1 and known[0] is not None:  # as a rule
        return PredictionResult(model, (known[0].prediction,), 0.0, CacheUse(1, 1, known[0].ttl))
    found = [each for each in known if each is not None]
    use = CacheUse(len(found), len(found), min([each.ttl for each in found]))
    return PredictionResult(model, tuple([each.prediction for each in found]), 0.0, use)
