"""Single-flight across processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domain.fingerprint import fingerprints
from domain.prediction import CacheUse, PredictionResult, Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from domain.ports import Leases, PredictionCache, Predictor
    from domain.prediction import Prediction, PredictionRequest


class Leasing:
    """Asks for an instance that another process is asking for already not at all: waits for its answer.

    Whoever takes the lease of an instance asks the model, puts the answer into `cache`, for `ttl` seconds,
    and gives the lease back; the others find the answer there. A holder that dies or fails leaves no
    answer: then one of the others takes the lease.
    Source: Nishtala et al., "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1.
    """

    def __init__(self, inner: Predictor, *, cache: PredictionCache, leases: Leases, ttl: float) -> None:
        self._inner = inner
        self._cache = cache
        self._leases = leases
        self._ttl = ttl

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        if not (request.cache.read and request.cache.store):
            return await self._inner(request)  # there would be no answer for the others
        work = _Work(request, fingerprints(request))
        while missing := work.missing():
            mine = await self._leases.take(missing)
            if mine:
                await self._do(work, [key for key in missing if key in mine])
            others = work.missing()
            if others:
                await self._leases.wait(others)
                await self._look(work, others)
        return work.result()

    async def _do(self, work: _Work, mine: Sequence[bytes]) -> None:
        """Ask the model for what is `mine`, unless the last holder did so just before."""
        try:
            await self._look(work, mine)
            missing = work.missing(mine)
            if missing:
                result = await self._inner(work.part(missing))
                work.landed(missing, result)
                answered = zip(missing, result.predictions, strict=True)
                good = {key: each for key, each in answered if not isinstance(each, Refusal)}
                stored = bool(good) and await self._cache.put(good, self._ttl)
                work.stored = work.stored and stored and len(good) == len(missing)
        finally:
            await self._leases.give_back(mine)

    async def _look(self, work: _Work, keys: Sequence[bytes]) -> None:
        known = await self._cache.get(keys)
        for key, cached in zip(keys, known, strict=True):
            if cached is not None:
                work.found[key] = cached.prediction
                work.from_others = True


class _Work:
    """One request on its way: what is found so far, by fingerprint."""

    def __init__(self, request: PredictionRequest, keys: tuple[bytes, ...]) -> None:
        self.request = request
        self.found: dict[bytes, Prediction] = {}
        self.stored = True
        self.from_others = False
        self._keys = keys
        self._places = {key: place for place, key in enumerate(keys)}
        self._server_seconds = 0.0

    def missing(self, among: Sequence[bytes] | None = None) -> list[bytes]:
        return [key for key in (self._places if among is None else among) if key not in self.found]

    def part(self, keys: Sequence[bytes]) -> PredictionRequest:
        """The request for the instances of `keys`."""
        return self.request.only([self._places[key] for key in keys], self._keys)

    def landed(self, keys: Sequence[bytes], result: PredictionResult) -> None:
        self.found.update(zip(keys, result.predictions, strict=True))
        self._server_seconds = max(self._server_seconds, result.server_seconds)

    def result(self) -> PredictionResult:
        predictions = tuple(self.found[key] for key in self._keys)
        use = CacheUse(0, len(predictions), stored=self.stored)
        return PredictionResult(self.request.model, predictions, self._server_seconds, use, self.from_others)
