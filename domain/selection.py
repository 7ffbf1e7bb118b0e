"""Which of several servers to send a request to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

UNPROVEN = 1e9  # seconds: more than any measured load


@dataclass(slots=True)
class PeakEwma:
    """A server's latency as a peak-sensitive moving average, times its requests in flight.

    A slower answer than the average replaces it at once; it fades over `decay` seconds, also without a
    new answer, so that a slow start is forgiven. A server that has answered nothing yet and has work to do
    counts as UNPROVEN: else one that never answers would look like the fastest.
    Times are in seconds, `now` is of any steady clock.
    Source: Finagle's `PeakEwma` load metric (twitter/finagle, `loadbalancer/PeakEwma.scala`).
    """

    decay: float = 10.0
    latency: float = 0.0
    in_flight: int = 0
    measured_at: float = -math.inf

    def load(self, now: float) -> float:
        """The seconds of work that a new request would find in front of it."""
        if self.latency == 0.0 and self.in_flight:
            return UNPROVEN + self.in_flight
        return self.latency * self._faded(now) * (self.in_flight + 1)

    def observe(self, seconds: float, now: float) -> None:
        """Take in one answer, or failure, that took `seconds`."""
        if seconds >= self.latency:
            self.latency = seconds
        else:
            self.latency = seconds + self._faded(now) * (self.latency - seconds)
        self.measured_at = now

    def _faded(self, now: float) -> float:
        return math.exp(-(now - self.measured_at) / self.decay)


def power_of_two_choices(
    candidates: Sequence[T], cost: Callable[[T], float], pick: Callable[[Sequence[T], int], list[T]]
) -> T:
    """The cheaper of two candidates drawn by `pick` (as `random.Random.sample`); not empty.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 1996.
    """
    if len(candidates) == 1:
        return candidates[0]
    return min(pick(candidates, 2), key=cost)
