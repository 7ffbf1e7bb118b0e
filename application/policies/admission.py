"""Admission control: an adaptive concurrency limit, a bounded queue by deadline, and early refusal."""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from domain.concurrency_limit import Forecast, Window
from domain.errors import DeadlineExceeded, Overloaded, ServerBusy, ServerTimeout
from domain.events import Shed

if TYPE_CHECKING:
    from domain.concurrency_limit import Gradient2
    from domain.errors import DispatchError
    from domain.ports import Observer, Predictor
    from domain.prediction import PredictionRequest, PredictionResult

WINDOW = 0.5  # seconds between two looks at latency and throughput
FORGET = 10.0  # seconds without work after which a forecast is no more than a rumour
EARLY = 0.001  # seconds: the event loop may end a deadline this much too soon
LONGEST_RETRY = 60.0  # seconds
DROPS = (Overloaded, ServerBusy, ServerTimeout, DeadlineExceeded)


class _Waiter(NamedTuple):
    """Sorts by deadline, then arrival. `turn` gets None when let in, or the reason why not."""

    deadline: float
    arrival: int
    request: PredictionRequest
    turn: asyncio.Future[DispatchError | None]

    @property
    def weight(self) -> int:
        return len(self.request.instances)


class _Queue:
    """Waiters in the order of their turns, and the sum of their instances."""

    def __init__(self) -> None:
        self.waiters: list[_Waiter] = []
        self.instances = 0

    def ahead(self, position: int) -> float:
        """About how many instances wait before `position`: as if all requests were of the mean size."""
        return self.instances * position / len(self.waiters) if position else 0.0

    def insert(self, position: int, waiter: _Waiter) -> None:
        self.waiters.insert(position, waiter)
        self.instances += waiter.weight

    def remove(self, waiter: _Waiter) -> None:
        del self.waiters[bisect_left(self.waiters, waiter)]
        self.instances -= waiter.weight


class Admission:
    """Lets in as many instances as `limit` allows; others wait, and are refused where waiting is in vain.

    A request weighs its instances; one that is heavier than the limit goes in when nothing else is.
    The earliest deadline goes first. Interactive requests go before bulk ones, but while these wait they get
    `bulk_share` (between 0 and 1) of what is let in. At most `max_waiting` instances of each kind wait.
    Raises Overloaded at once where no more may wait, or where an answer is not expected before the deadline;
    never for its lateness when nothing is in flight, so that pessimism cannot last.
    `in_order` is whether `inner` answers in the order in which it is asked; Batching does not.
    """

    def __init__(
        self,
        inner: Predictor,
        *,
        limit: Gradient2,
        max_waiting: int,
        bulk_share: float,
        in_order: bool,
        observe: Observer,
    ) -> None:
        self.in_flight = 0
        self._inner = inner
        self._limit = limit
        self._max_waiting = max_waiting
        self._bulk_share = bulk_share
        self._observe = observe
        self._interactive = _Queue()
        self._bulk = _Queue()
        self._bulk_credit = 0.0  # instances that bulk may send before interactive ones
        self._arrivals = 0
        self._in_order = in_order
        self._forecast = Forecast(in_order=in_order)
        self._window = Window(0.0, 0.0)
        self._pressure = False
        self._idle_since = 0.0

    @property
    def waiting(self) -> int:
        """The instances that wait."""
        return self._interactive.instances + self._bulk.instances

    @property
    def limit(self) -> int:
        """How many instances may be in flight now."""
        return self._limit.limit

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        clock = asyncio.get_running_loop().time
        weight = len(request.instances)
        begun = clock()
        if self._interactive.waiters or self._bulk.waiters or not self._fits(weight):
            await self._wait(request, begun)
            begun = clock()
        else:
            if request.deadline is not None and self._is_late(0.0, weight, request.deadline - begun):
                raise self._shed(request, 0.0, begun)
            self._enter(weight, begun)
        answered: int | None = None  # which says nothing
        try:
            result = await self._inner(request)
            answered = weight
        except DROPS:
            answered = 0
            raise
        except asyncio.CancelledError:
            if request.deadline is not None and clock() >= request.deadline - EARLY:
                answered = 0
            raise
        finally:
            now = clock()
            if answered is not None:
                self._ended(begun, now, answered)
            self._leave(weight, now)
        return result

    def _fits(self, weight: int) -> bool:
        return not self.in_flight or self.in_flight + weight <= self._limit.limit

    def _is_late(self, ahead: float, weight: int, remaining: float) -> bool:
        return self.in_flight > 0 and self._forecast.seconds(self.in_flight, ahead, weight) > remaining

    def _enter(self, weight: int, now: float) -> None:
        if not self.in_flight:
            idle = now - self._idle_since
            self._window.pause(idle)
            if idle > FORGET:
                self._forecast = Forecast(in_order=self._in_order)
        self.in_flight += weight

    def _leave(self, weight: int, now: float) -> None:
        self.in_flight -= weight
        if not self.in_flight:
            self._idle_since = now
        if self._interactive.waiters or self._bulk.waiters:
            self._let_in(now)

    def _ended(self, begun: float, now: float, answered: int) -> None:
        if self._window.complete(now, WINDOW if self._forecast.rate else 0.0):
            self._limit.update(self._window)
            self._forecast.learn(self._window, pressure=self._pressure)
            self._window = Window(self._window.ended, now)
            self._pressure = self.waiting > 0
        self._window.add(now, now - begun, answered, self.in_flight)

    async def _wait(self, request: PredictionRequest, now: float) -> None:
        queue = self._bulk if request.bulk else self._interactive
        self._arrivals += 1
        self._pressure = True
        deadline = math.inf if request.deadline is None else request.deadline
        waiter = _Waiter(deadline, self._arrivals, request, asyncio.get_running_loop().create_future())
        position = bisect_left(queue.waiters, waiter)
        ahead = self._ahead(queue, position, waiter.weight)
        full = queue.instances > 0 and queue.instances + waiter.weight > self._max_waiting
        if full or self._is_late(ahead, waiter.weight, deadline - now):
            raise self._shed(request, ahead, now, full=full)
        queue.insert(position, waiter)
        self._let_in(now)  # it may fit where the first in the queue is too heavy
        try:
            error = await waiter.turn
        except asyncio.CancelledError:
            now = asyncio.get_running_loop().time()
            if waiter.turn.cancelled():
                queue.remove(waiter)
                self._let_in(now)
            elif waiter.turn.result() is None:
                self._leave(waiter.weight, now)  # it was let in at the same moment
            raise
        if error is not None:
            raise error

    def _ahead(self, queue: _Queue, position: int, weight: int) -> float:
        """The instances that wait and go in before `weight` more at `position` of `queue`."""
        ahead, share = queue.ahead(position), self._bulk_share
        if queue is self._bulk:
            return min(ahead + self._interactive.instances, (ahead + weight) / share - weight)
        return ahead / (1 - share) if self._bulk.waiters else ahead

    def _let_in(self, now: float) -> None:
        while queue := self._next():
            waiter = queue.waiters[0]
            if waiter.turn.done() or not self._fits(waiter.weight):
                return  # one that is cancelled, but not yet awake, calls again as it leaves
            queue.remove(waiter)
            refusal = self._refusal(waiter, now)
            if refusal is None:
                self._enter(waiter.weight, now)
                share = self._bulk_share
                self._bulk_credit += waiter.weight * (-1 if queue is self._bulk else share / (1 - share))
            waiter.turn.set_result(refusal)

    def _next(self) -> _Queue | None:
        """The queue whose turn it is: bulk's when it has saved up its share, or nobody else waits."""
        if not self._bulk.waiters or self._bulk_credit < 0:
            self._bulk_credit = 0.0  # nothing is saved without need, and nothing is owed
        due = self._bulk.waiters and self._bulk_credit >= self._bulk.waiters[0].weight
        if due or not self._interactive.waiters:
            return self._bulk if self._bulk.waiters else None
        return self._interactive

    def _refusal(self, waiter: _Waiter, now: float) -> DispatchError | None:
        """Why the waiter whose turn it is would be let in for nothing."""
        if waiter.deadline <= now:
            return DeadlineExceeded("No answer in time: the request was still waiting for its turn.")
        if self._is_late(0.0, waiter.weight, waiter.deadline - now):
            return self._shed(waiter.request, 0.0, now)
        return None

    def _shed(
        self, request: PredictionRequest, ahead: float, now: float, *, full: bool = False
    ) -> Overloaded:
        self._pressure = True
        self._observe(Shed(request.model, len(request.instances), "full" if full else "late"))
        forecast, waiting = self._forecast, self.waiting
        if full:
            why = "No more may wait."
        else:
            needed = forecast.seconds(self.in_flight, ahead, len(request.instances))
            remaining = (request.deadline or now) - now
            why = (
                f"At {forecast.rate:.3g} a second yours would be answered in {needed:.2g} s, "
                f"but its time is over in {remaining:.2g} s."
            )
        drained = (self.in_flight + waiting) * forecast.pace if forecast.rate else 1.0
        return Overloaded(
            f"Instances in progress: {self.in_flight}, waiting: {waiting}. {why}", min(drained, LONGEST_RETRY)
        )
