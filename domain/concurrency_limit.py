"""How much work may be in progress at once, and when it will be done: learned from how long work takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = 10  # requests that make a window; Netflix's number
LONG = 1 / 300  # the weight of one window in the long-term latency: it remembers minutes
RECOVERY = 0.9  # what is kept, at every window, of a long-term latency that is far above the present one
TOLERATED = 0.01  # the share of requests that are dropped in the best of times
REST = 20  # windows without growth after a drop: the limit was just seen to be high enough
MEMORY = 1.0  # seconds after which a forecast has mostly forgotten what it saw


@dataclass(slots=True)
class Window:
    """Sums over the requests that ended since `opened`, so that one more costs a few additions.

    `seconds` is how long they took, `instances` how many were answered; `drops` were not answered in time.
    `peak` is the most that was in flight, in instances; `ended` is when the last request did.
    """

    opened: float
    ended: float
    requests: int = 0
    instances: int = 0
    drops: int = 0
    seconds: float = 0.0
    squares: float = 0.0
    peak: int = 0

    def add(self, now: float, seconds: float, answered: int, in_flight: int) -> None:
        """A request ended now, after `seconds`: `answered` instances, or 0 where it was dropped."""
        self.ended = now
        self.requests += 1
        self.instances += answered
        self.drops += not answered
        self.seconds += seconds
        self.squares += seconds * seconds
        if in_flight > self.peak:  # noqa: PLR1730 - cheaper than max(), and on every request's way
            self.peak = in_flight

    def complete(self, now: float, least: float) -> bool:
        """Whether this is enough to learn from: SAMPLES, `least` seconds, and a batch is not being cut.

        The answers of a batch come together: only a pause as long as half the usual one is between two.
        """
        age = self.ended - self.opened
        return self.requests >= SAMPLES and age > least and 2 * self.requests * (now - self.ended) >= age

    def pause(self, seconds: float) -> None:
        """Nothing was in flight for `seconds`: they prove nothing about speed."""
        self.opened += seconds
        self.ended += seconds

    def latency(self) -> float:
        """The mean seconds of a request."""
        return self.seconds / self.requests

    def usual(self) -> float:
        """The seconds within which most requests ended: the mean and one standard deviation."""
        mean = self.latency()
        return mean + math.sqrt(max(0.0, self.squares / self.requests - mean * mean))


class Gradient2:
    """A limit of instances in flight that grows while latency stays what it is in the long run.

    Each window the limit is multiplied by the gradient, `tolerance` times long-term by present latency
    but within 0.5 to 1, `allowance` is added for a short queue, and a `smoothing` part of that is done.
    A window that used less than half of the limit proves nothing, and changes nothing.
    Where requests were dropped, half of their share is taken off (as DCTCP, RFC 8257), and growth rests.
    The limit is never below `floor()`, what the servers need to be busy: where requests are batched, latency
    grows with the batch long before there is too much work. It is never above `maximum`.
    Source: Netflix/concurrency-limits, `Gradient2Limit` and its defaults.
    """

    def __init__(
        self,
        *,
        initial: int = 20,
        maximum: int = 1000,
        floor: Callable[[], int] = lambda: 1,
        tolerance: float = 1.5,
        allowance: float = 4.0,
        smoothing: float = 0.2,
    ) -> None:
        self._exact = float(initial)
        self._maximum = maximum
        self._floor = floor
        self._tolerance = tolerance
        self._allowance = allowance
        self._smoothing = smoothing
        self._long = 0.0
        self._windows = 0
        self._resting = 0
        self._bound()

    def update(self, window: Window) -> None:
        """Learn from a window with at least one request, and ask `floor` again."""
        dropped = window.drops / window.requests
        gradient = self._gradient(window.latency())
        self._resting -= 1
        if dropped > TOLERATED:
            self._exact *= 1 - dropped / 2
            self._resting = REST
        elif window.peak >= self._exact / 2:
            growth = self._allowance if self._resting < 0 else 0.0
            self._exact += self._smoothing * (self._exact * gradient + growth - self._exact)
        self._bound()

    def _gradient(self, present: float) -> float:
        self._windows += 1
        weight = max(LONG, 1 / self._windows if self._windows <= SAMPLES else 0.0)  # at first a plain mean
        self._long += weight * (present - self._long)
        if self._long > 2 * present:
            self._long *= RECOVERY
        return max(0.5, min(1.0, self._tolerance * self._long / present)) if present else 1.0

    def _bound(self) -> None:
        self._exact = min(max(self._exact, self._floor(), 1.0), self._maximum)
        self.limit = int(self._exact)


class Forecast:
    """When an answer can be expected, from how fast answers came of late; 0 s where nothing is known yet.

    `rate` is in instances a second. It follows what is seen only while there was `pressure`, more work than
    was let in: without it a low rate says that little was asked, and only a higher one is news (as BBR's
    application-limited samples, draft-ietf-ccwg-bbr).
    `in_order` is whether all that is in flight is answered before one more is, as in a server's own queue.
    Where the urgent pass what is in flight, only the time until one is let in can be told.
    """

    def __init__(self, *, in_order: bool = True) -> None:
        self._in_order = in_order
        self.rate = 0.0
        self.pace = 0.0  # seconds for each instance
        self._usual = 0.0
        self._peak = 0

    def learn(self, window: Window, *, pressure: bool) -> None:
        """Take in a complete window."""
        age = window.ended - window.opened
        rate = max(window.instances, 1) / age  # with no answer at all: slower than one in this time
        fresh = 1 - math.exp(-age / MEMORY) if self.rate else 1.0
        if pressure or window.drops or rate > self.rate:
            self.rate += fresh * (rate - self.rate)
        self.pace = 1 / self.rate
        self._usual += fresh * (window.usual() - self._usual)
        self._peak = window.peak

    def seconds(self, in_flight: int, ahead: float, weight: int) -> float:
        """Until `weight` more instances are answered, with `in_flight` and `ahead` waiting before them.

        Whoever shares a batch with later ones waits for these too, so it is no less than the usual time;
        but when nearly all of the work is gone, that time is out of date.
        """
        if not self._in_order:
            return ahead * self.pace
        work = (in_flight + ahead + weight) * self.pace
        return work if 4 * in_flight < self._peak else max(work, ahead * self.pace + self._usual)
