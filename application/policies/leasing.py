"""Single-flight across processes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from domain.fingerprint import fingerprints
from domain.prediction import CacheUse, PredictionResult, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from domain.ports import Leases, PredictionCache, Predictor
    from domain.prediction import Prediction, PredictionRequest


class Leasing:
    """Asks for an instance that another process is asking for already not at all: waits for its answer.

    Whoever takes the lease of an instance asks the model, puts the answer into `cache`, for `ttl` seconds,
    and gives the lease back; the others find the answer there. A holder that dies, that fails, or whose
    answer cannot be stored, leaves none: then each of the others asks for itself, without a lease, as it
    might be so again, and they would go one after the other.
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
        if request.bulk:
            return await self._inner(request)  # interactive work would wait for its lease
        work = _Work(request, fingerprints(request))
        if mine := await self._take(work):
            try:
                await self._ask(work, mine)
            finally:
                await self._leases.give_back(mine)
        while others := work.missing():
            await self._leases.wait(others)
            await self._look(work, others)
            if ended := await self._take(work):
                await self._leases.give_back(ended)
                await self._ask(work, ended)
        return work.result()

    async def _take(self, work: _Work) -> list[bytes]:
        """What is missing and held by nobody else: ours now, to be given back."""
        missing = work.missing()
        taken = await self._leases.take(missing) if missing else ()
        return [key for key in missing if key in taken]

    async def _ask(self, work: _Work, keys: Sequence[bytes]) -> None:
        """Ask the model for `keys`, unless their last holder did so just before."""
        await self._look(work, keys)
        if missing := work.missing(keys):
            result = await self._inner(work.part(missing))
            work.landed(missing, result)
            work.remembered(await self._remember(missing, result))

    async def _remember(self, keys: Sequence[bytes], result: PredictionResult) -> float | None:
        """For how many seconds the cache now has all of `result`; None where it lacks some."""
        answered = zip(keys, result.predictions, strict=True)
        good = {key: each for key, each in answered if not isinstance(each, Refusal)}
        stored = bool(good) and await self._cache.put(good, self._ttl)
        return self._ttl if stored and len(good) == len(keys) else None

    async def _look(self, work: _Work, keys: Sequence[bytes]) -> None:
        known = await self._cache.get(keys)
        for key, cached in zip(keys, known, strict=True):
            if cached is not None:
                work.found[key] = cached.prediction
                work.remembered(cached.ttl)
                work.from_others = True


class _Work:
    """One request on its way: what is found so far, by fingerprint."""

    def __init__(self, request: PredictionRequest, keys: tuple[bytes, ...]) -> None:
        self.found: dict[bytes, Prediction] = {}
        self.from_others = False
        self._request = request
        self._model = request.model
        self._keys = keys
        self._places = {key: place for place, key in enumerate(keys)}
        self._server_seconds = 0.0
        self._stored = True
        self._ttl = math.inf

    def missing(self, among: Iterable[bytes] | None = None) -> list[bytes]:
        return [key for key in (self._places if among is None else among) if key not in self.found]

    def part(self, keys: Sequence[bytes]) -> PredictionRequest:
        """The request for the instances of `keys`."""
        return self._request.only([self._places[key] for key in keys], self._keys)

    def landed(self, keys: Sequence[bytes], result: PredictionResult) -> None:
        self.found.update(zip(keys, result.predictions, strict=True))
        self._model = result.model
        self._server_seconds = max(self._server_seconds, result.server_seconds)

    def remembered(self, ttl: float | None) -> None:
        """Some of it stays in the cache for `ttl` seconds; None where it does not."""
        if ttl is None:
            self._stored = False
        else:
            self._ttl = min(self._ttl, ttl)

    def result(self) -> PredictionResult:
        predictions = tuple([self.found[key] for key in self._keys])
        use = CacheUse(0, len(predictions), self._ttl if self._stored else None, self._stored)
        return PredictionResult(self._model, predictions, self._server_seconds, use, self.from_others)
