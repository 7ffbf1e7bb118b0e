"""Response cache, by instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from application.recall import remembered
from domain.fingerprint import fingerprints
from domain.prediction import CacheUse, PredictionResult, Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
        known: Sequence[Cached | None] = (None,) * len(keys)
        if request.cache.read:
            known = await self._cache.get(keys)
        if None not in known:
            return remembered(request.model, known)
        if len(keys) == 1:
            missing = {keys[0]: 0}
        else:
            missing = {keys[i]: i for i, each in enumerate(known) if each is None}
        # As a rule none is known and none comes twice, and then the request goes on as it is.
        same = len(missing) == len(request.fingerprints)
        result = await self._inner(request if same else request.only(missing.values(), keys))
        new = dict(zip(missing, result.predictions, strict=True))
        stays: float | None = None  # seconds, where the cache now has all of them
        if request.cache.store:
            if result.cache is not None and result.cache.stored:
                stays = result.cache.ttl  # who was asked has put it there
            elif await self._remember(new):
                stays = self._ttl
        predictions, hits, ttl = result.predictions, 0, stays
        if not same:
            found = [each.ttl for each in known if each is not None]
            hits, ttl = len(found), min(found if stays is None else [*found, stays], default=None)
            predictions = tuple(
                [new[key] if each is None else each.prediction for key, each in zip(keys, known, strict=True)]
            )
        use = CacheUse(hits, len(keys), ttl, stays is not None, not request.cache.read)
        return PredictionResult(result.model, predictions, result.server_seconds, use, result.collapsed)

    async def _remember(self, new: Mapping[bytes, Prediction]) -> bool:
        """Whether the cache now has all of `new`."""
        good = {key: each for key, each in new.items() if not isinstance(each, Refusal)}
        stored = bool(good) and await self._cache.put(good, self._ttl)
        return stored and len(good) == len(new)
