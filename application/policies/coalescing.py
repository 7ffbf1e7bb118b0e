"""Single-flight."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from application.tasks import start
from domain.errors import DeadlineExceeded, Overloaded
from domain.fingerprint import fingerprints
from domain.prediction import PredictionResult

if TYPE_CHECKING:
    from collections.abc import Iterable

    from domain.ports import Predictor
    from domain.prediction import Prediction, PredictionRequest

    Landing = asyncio.Future[dict[bytes, Prediction]]


class Coalescing:
    """Asks for an instance that is being asked for already only once, in this process.

    A request joins the flights that carry its instances and starts one for the others. A flight outlives
    the caller who started it, and is cancelled when its last passenger leaves. Who joined a flight that
    fails for a reason of its own asks again.
    Source: Go's `singleflight`, nginx's `proxy_cache_lock`.
    """

    def __init__(self, inner: Predictor) -> None:
        self._inner = inner
        self._flights: dict[bytes, _Flight] = {}

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        if not request.cache.read:
            return await self._inner(request)  # who wants to hear the model itself joins nobody
        keys = fingerprints(request)
        places = {key: place for place, key in enumerate(keys)}
        landed: dict[bytes, Prediction] = {}
        seconds, joined = 0.0, False
        while missing := [key for key in places if key not in landed]:
            own, boarded = self._board(request, keys, [places[key] for key in missing])
            joined = joined or len(boarded) > (own is not None)
            try:
                for flight, landing in boarded.items():
                    try:
                        landed |= await landing
                    except Exception as error:
                        if flight is own or flight.failed_for(request, error):
                            raise
                    seconds = max(seconds, flight.server_seconds)
            finally:
                for flight, landing in boarded.items():
                    flight.leave(landing)
        predictions = tuple(landed[key] for key in keys)
        return PredictionResult(request.model, predictions, seconds, None, joined)

    def _board(
        self, request: PredictionRequest, keys: tuple[bytes, ...], missing: Iterable[int]
    ) -> tuple[_Flight | None, dict[_Flight, Landing]]:
        """A seat on every flight that carries a `missing` instance; the first of the two is a new flight."""
        loop = asyncio.get_running_loop()
        boarded: dict[_Flight, Landing] = {}
        alone: list[int] = []
        for place in missing:
            flight = self._flights.get(keys[place])
            if flight is None or not flight.carries_for(request):
                alone.append(place)
            elif flight not in boarded:
                boarded[flight] = flight.board(loop)
        if not alone:
            return None, boarded
        own = _Flight(request.only(alone, keys))
        boarded[own] = own.board(loop)
        self._flights.update(dict.fromkeys(own.request.fingerprints, own))
        own.task = start(self._fly(own))
        return own, boarded

    async def _fly(self, flight: _Flight) -> None:
        try:
            result = await self._inner(flight.request)
        except Exception as error:  # noqa: BLE001  (every passenger raises it)
            flight.crash(error)
        else:
            flight.land(result)
        finally:
            for key in flight.request.fingerprints:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.end()


@dataclass(slots=True, eq=False)
class _Flight:
    """Work that has begun, and who waits for it: it belongs to nobody."""

    request: PredictionRequest
    passengers: set[Landing] = field(default_factory=set)
    task: asyncio.Task[None] | None = None
    server_seconds: float = 0.0

    def carries_for(self, request: PredictionRequest) -> bool:
        """Whether `request` may join: interactive work does not wait where bulk work does."""
        return request.bulk or not self.request.bulk

    def failed_for(self, request: PredictionRequest, error: Exception) -> bool:
        """Whether `request` would have failed with `error`, too, had it gone alone.

        Not where it was another server that was named, other instances that were on board,
        or the time of others that was over.
        """
        own = self.request
        if own.server != request.server or len(own.instances) > 1:
            return False
        return not isinstance(error, (DeadlineExceeded, Overloaded)) or own.deadline == request.deadline

    def board(self, loop: asyncio.AbstractEventLoop) -> Landing:
        landing: Landing = loop.create_future()
        self.passengers.add(landing)
        return landing

    def leave(self, landing: Landing) -> None:
        """The passenger is answered, or wants no answer any more."""
        self.passengers.discard(landing)
        if landing.done() and not landing.cancelled():
            landing.exception()  # it may have failed while its passenger waited for another
        if not self.passengers and self.task is not None:
            self.task.cancel()  # which does nothing where it has landed

    def land(self, result: PredictionResult) -> None:
        self.server_seconds = result.server_seconds
        found = dict(zip(self.request.fingerprints, result.predictions, strict=True))
        for landing in self.passengers:
            if not landing.done():
                landing.set_result(found)

    def crash(self, error: Exception) -> None:
        for landing in self.passengers:
            if not landing.done():
                landing.set_exception(error)

    def end(self) -> None:
        """Nobody stays behind on a flight that was cancelled."""
        for landing in self.passengers:
            landing.cancel()
