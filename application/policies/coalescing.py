"""Single-flight."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from application.tasks import start
from domain.errors import DeadlineExceeded, Overloaded
from domain.fingerprint import fingerprints
from domain.prediction import CacheUse, PredictionResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from domain.ports import Predictor
    from domain.prediction import Prediction, PredictionRequest

    Seat = asyncio.Future[None]

OUT_OF_TIME = (DeadlineExceeded, Overloaded)  # who has more time may fare better


class Coalescing:
    """Asks for an instance that is being asked for already only once, in this process.

    A request joins the flights that carry its instances and starts one for the others. A flight outlives
    the caller who started it, and is cancelled when its last passenger leaves. One that has landed is there
    until its passengers have left with the answer: whoever remembers it outside does so before anybody
    could ask again. Who joined a flight that failed for a reason of its own asks again, once.
    Source: Go's `singleflight`, nginx's `proxy_cache_lock`.
    """

    def __init__(self, inner: Predictor) -> None:
        self._inner = inner
        self._flights: dict[bytes, _Flight] = {}

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        if not request.cache.read:
            return await self._inner(request)  # who wants to hear the model itself joins nobody
        keys = fingerprints(request)
        if len(keys) == 1 and keys[0] not in self._flights:
            return await self._lead(request, keys)
        places = {key: place for place, key in enumerate(keys)}
        flights = self._choose(request, keys, places, again=False)
        joined = await self._travel(request, keys, dict.fromkeys(flights.values()))
        failed = {key: places[key] for key, flight in flights.items() if flight.error is not None}
        if failed:
            others = self._choose(request, keys, failed, again=True)
            await self._travel(request, keys, dict.fromkeys(others.values()))
            flights |= others
        if not joined and len(flights) == len(keys):
            return flights[keys[0]].landed
        return _answer(keys, flights, joined=joined)

    async def _lead(self, request: PredictionRequest, keys: tuple[bytes, ...]) -> PredictionResult:
        """The usual case, without all that others need: one instance, and no flight that carries it."""
        flight = _Flight(request if request.fingerprints else request.only((0,), keys))
        seat = flight.board(request)
        self._flights[keys[0]] = flight
        flight.task = start(self._fly(flight))
        try:
            await seat
        finally:
            self._leave(flight, seat)
        if flight.error is not None:
            raise flight.error.with_traceback(flight.traceback)
        return flight.landed

    def _choose(
        self, request: PredictionRequest, keys: tuple[bytes, ...], places: Mapping[bytes, int], *, again: bool
    ) -> dict[bytes, _Flight]:
        """A flight for each of `places`: one that is under way, else a new one for all that remain.

        Who asks `again` joins only a flight whose failure would be final, lest it goes on and on.
        """
        under_way = {key: self._flights[key] for key in places if key in self._flights}
        joined = {
            flight
            for flight in set(under_way.values())
            if flight.carries(request) and (not again or flight.speaks_for(request, keys))
        }
        chosen = {key: flight for key, flight in under_way.items() if flight in joined}
        alone = [place for key, place in places.items() if key not in chosen]
        if alone:
            # As many fingerprints as it needs: it has them, in order, and none twice.
            same = len(alone) == len(request.fingerprints)
            own = _Flight(request if same else request.only(alone, keys))
            for key in own.request.fingerprints:
                chosen[key] = self._flights[key] = own
        return chosen

    async def _travel(
        self, request: PredictionRequest, keys: Sequence[bytes], flights: Iterable[_Flight]
    ) -> bool:
        """Sit on all `flights` until they are over; whether one was under way already.

        Raises the error of one that failed, unless it failed for a reason of its own.
        """
        seats: dict[_Flight, Seat] = {}
        joined = False
        for flight in flights:
            joined = joined or flight.task is not None
            if flight.result is None:  # else there is nothing to wait for
                seats[flight] = flight.board(request)
                flight.task = flight.task or start(self._fly(flight))
        try:
            for flight, seat in seats.items():
                await seat
                if flight.error is not None and flight.failed_for(request, keys):
                    raise flight.error.with_traceback(flight.traceback)
        finally:
            for flight, seat in seats.items():
                self._leave(flight, seat)
        return joined

    async def _fly(self, flight: _Flight) -> None:
        try:
            flight.land(await self._inner(flight.request))
        except Exception as error:  # noqa: BLE001  (its passengers raise it)
            flight.crash(error)
        finally:
            if flight.result is None:
                self._forget(flight)  # nobody may board what has failed
            flight.wake()

    def _leave(self, flight: _Flight, seat: Seat) -> None:
        """The passenger is answered, or wants no answer any more."""
        del flight.passengers[seat]
        if flight.passengers:
            return
        self._forget(flight)  # also before it has ended: nobody may board what is being cancelled
        if flight.task is not None and not flight.task.done():
            flight.task.cancel()

    def _forget(self, flight: _Flight) -> None:
        for key in flight.request.fingerprints:
            if self._flights.get(key) is flight:
                del self._flights[key]


class _Flight:
    """Work that has begun, and who waits for it: it belongs to nobody.

    `passengers` says until when each of them waits.
    """

    __slots__ = ("_landed", "error", "passengers", "request", "result", "task", "traceback")

    def __init__(self, request: PredictionRequest) -> None:
        self.request = request
        self.passengers: dict[Seat, float] = {}
        self.task: asyncio.Task[None] | None = None
        self.result: PredictionResult | None = None
        self.error: Exception | None = None
        self.traceback: TracebackType | None = None
        self._landed: Mapping[bytes, Prediction] | None = None

    @property
    def landed(self) -> PredictionResult:
        """The result of a flight that did not fail."""
        assert self.result is not None
        return self.result

    @property
    def predictions(self) -> Mapping[bytes, Prediction]:
        """The result by fingerprint."""
        if self._landed is None:
            self._landed = dict(zip(self.request.fingerprints, self.landed.predictions, strict=True))
        return self._landed

    def carries(self, request: PredictionRequest) -> bool:
        """Whether `request` may join: interactive work does not wait where bulk work does."""
        return request.bulk or not self.request.bulk

    def speaks_for(self, request: PredictionRequest, keys: Sequence[bytes]) -> bool:
        """Whether any failure of it would be one of `request`, too, had that gone alone."""
        return self._asks_no_more_than(request, keys) and self._is_as_patient_as(request)

    def failed_for(self, request: PredictionRequest, keys: Sequence[bytes]) -> bool:
        """Whether `request` would have failed with the same error had it gone alone.

        Not where it was another server that was named, other instances that were on board,
        or a shorter time that was over.
        """
        if not self._asks_no_more_than(request, keys):
            return False
        return not isinstance(self.error, OUT_OF_TIME) or self._is_as_patient_as(request)

    def _asks_no_more_than(self, request: PredictionRequest, keys: Sequence[bytes]) -> bool:
        return self.request.server == request.server and set(keys).issuperset(self.request.fingerprints)

    def _is_as_patient_as(self, request: PredictionRequest) -> bool:
        return _patience(self.request) >= _patience(request)

    def board(self, request: PredictionRequest) -> Seat:
        seat: Seat = asyncio.get_running_loop().create_future()
        self.passengers[seat] = _patience(request)
        return seat

    def land(self, result: PredictionResult) -> None:
        if len(result.predictions) != len(self.request.instances):
            message = f"{len(result.predictions)} predictions for {len(self.request.instances)} instances"
            raise ValueError(message)
        self.result = result

    def crash(self, error: Exception) -> None:
        self.error = error
        self.traceback = error.__traceback__  # else each passenger who raises it would add its own

    def wake(self) -> None:
        """The most patient first: the others can join it where they ask again."""
        cancelled = self.result is None and self.error is None
        seats: Iterable[Seat] = self.passengers
        if len(self.passengers) > 1:
            seats = sorted(seats, key=self.passengers.__getitem__, reverse=True)
        for seat in seats:
            if cancelled:
                seat.cancel()
            elif not seat.done():
                seat.set_result(None)


def _patience(request: PredictionRequest) -> float:
    return math.inf if request.deadline is None else request.deadline


def _answer(keys: Sequence[bytes], flights: Mapping[bytes, _Flight], *, joined: bool) -> PredictionResult:
    """Put together from what all `flights` brought."""
    results = [flight.landed for flight in dict.fromkeys(flights.values())]
    uses = [result.cache for result in results if result.cache is not None and result.cache.stored]
    use = None
    if len(uses) == len(results):
        ttls = [each.ttl for each in uses if each.ttl is not None]
        use = CacheUse(0, len(keys), min(ttls, default=None), stored=True)
    return PredictionResult(
        results[0].model,
        tuple([flights[key].predictions[key] for key in keys]),
        max([result.server_seconds for result in results]),
        use,
        joined or any(result.collapsed for result in results),
    )
