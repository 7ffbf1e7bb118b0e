"""Which of several servers to send a request to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")


@dataclass(slots=True)
class PeakEwma:
    """A server's latency as a peak-sensitive moving average, times its requests in flight.

    A slower answer than the average replaces it at once; a faster one decays it over `decay` seconds.
    Source: Finagle's `PeakEwma` load metric (twitter/finagle, `loadbalancer/PeakEwma.scala`).
    """

    decay: float = 10.0
    latency: float = 0.0
    in_flight: int = 0
    measured_at: float = -math.inf

    def load(self) -> float:
        """Expected seconds of work in front of a new request; never measured counts as no latency."""
        return self.latency * (self.in_flight + 1)

    def observe(self, seconds: float, now: float) -> None:
        """Take in one answer that took `seconds`, at time `now` in seconds of any steady clock."""
        if seconds > self.latency:
            self.latency = seconds
        else:
            keep = math.exp(-(now - self.measured_at) / self.decay)
            self.latency = keep * self.latency + (1 - keep) * seconds
        self.measured_at = now


def power_of_two_choices(
    candidates: Sequence[T], cost: Callable[[T], float], pick: Callable[[Sequence[T], int], list[T]]
) -> T:
    """The cheaper of two candidates drawn by `pick` (as `random.Random.sample`); not empty.

    Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", 1996.
    """
    if len(candidates) == 1:
        return candidates[0]
    return min(pick(candidates, 2), key=cost)
