"""Response cache, by instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domain.fingerprint import fingerprints
from domain.prediction import CacheUse, PredictionResult, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.ports import Cached, PredictionCache, Predictor
    from domain.prediction import Prediction, PredictionRequest


class Caching:
    """Answers from `cache` what it remembers, asks for the rest, and remembers that for `ttl` seconds.

    A request with 9 known of 10 instances asks the model for 1. What the model refused is not remembered,
    nor any error. The caller's `cache` says whether it may be answered from the cache, and remembered there.
    """

    def __init__(self, inner: Predictor, *, cache: PredictionCache, ttl: float) -> None:
        self._inner = inner
        self._cache = cache
        self._ttl = ttl

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        keys = fingerprints(request)
        known: Sequence[Cached | None] = ()
        if request.cache.read:
            known = await self._cache.get(keys)
            if None not in known:
                return _all_known(request, known)
        missing = [i for i in range(len(keys)) if not known or known[i] is None]
        result = await self._inner(request.only(missing, keys))
        stored = await self._remember(request, [keys[i] for i in missing], result)
        return self._completed(request, known, missing, result, stored=stored)

    async def _remember(
        self, request: PredictionRequest, keys: Sequence[bytes], result: PredictionResult
    ) -> bool:
        """Whether the cache now has all that `result` says."""
        if result.cache is not None and result.cache.stored:
            return True
        good = {k: p for k, p in zip(keys, result.predictions, strict=True) if not isinstance(p, Refusal)}
        if not (good and request.cache.store):
            return False
        return await self._cache.put(good, self._ttl) and len(good) == len(set(keys))

    def _completed(
        self,
        request: PredictionRequest,
        known: Sequence[Cached | None],
        missing: Sequence[int],
        result: PredictionResult,
        *,
        stored: bool,
    ) -> PredictionResult:
        new = dict(zip(missing, result.predictions, strict=True))
        found = {i: each for i, each in enumerate(known) if each is not None}
        predictions: list[Prediction] = [
            new[i] if i in new else found[i].prediction for i in range(len(request.instances))
        ]
        ttls = [each.ttl for each in found.values()] + ([self._ttl] if stored else [])
        use = CacheUse(
            hits=len(found),
            of=len(predictions),
            ttl=min(ttls, default=None),
            stored=stored,
            bypassed=not request.cache.read,
        )
        return PredictionResult(
            result.model, tuple(predictions), result.server_seconds, use, result.collapsed
        )


def _all_known(request: PredictionRequest, known: Sequence[Cached | None]) -> PredictionResult:
    found = [each for each in known if each is not None]
    use = CacheUse(len(found), len(found), min(each.ttl for each in found))
    return PredictionResult(request.model, tuple(each.prediction for each in found), 0.0, use)
