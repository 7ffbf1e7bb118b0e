"""Who of those that wait travels together: the cutting of batches."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
NEWEST = 0.2
MARGIN = (
    0.5  # deviations: of 0, 0.5 and 1, what brings most answers in time (docs/decisions/0007-batching.md)
)


class Waiting(NamedTuple, Generic[T]):
    """One instance in line, of the request `caller`; the fields are in the order of urgency.

    `arrival` numbers the requests and `position` the instances of one, so that no two are equal;
    `deadline` is infinite where there is none.
    """

    deadline: float
    arrival: int
    position: int
    cost: int
    caller: T


def batch_cost(costs: Sequence[int]) -> int:
    """What a batch of instances that cost `costs` alone costs together: all are padded to the longest."""
    return max(costs, default=0) * len(costs)


class BatchSeconds:
    """How long batches took of late: their mean and deviation, where each new one counts for NEWEST.

    Source: the estimator of TCP's round trips (RFC 6298), with the standard deviation itself.
    """

    def __init__(self) -> None:
        self._mean = self._variance = 0.0

    def learn(self, seconds: float) -> None:
        """One took `seconds`."""
        if not self._mean:
            self._mean = seconds
        else:
            error = seconds - self._mean
            self._mean += NEWEST * error
            self._variance = (1 - NEWEST) * (self._variance + NEWEST * error * error)

    def needed(self) -> float:
        """The seconds in which most are done; 0 where nothing is known."""
        return self._mean + MARGIN * math.sqrt(self._variance)


class BatchQueue(Generic[T]):
    """Instances that may travel together, in line by deadline and then by arrival.

    `take` cuts the batch off that goes next: the first `max_size` in line.
    To add or remove one costs O(log n) comparisons, and moves pointers.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._line: list[Waiting[T]] = []

    def __len__(self) -> int:
        return len(self._line)

    @property
    def first(self) -> Waiting[T]:
        """The most urgent; not empty."""
        return self._line[0]

    def add(self, waiting: Waiting[T]) -> None:
        insort(self._line, waiting)

    def take(self) -> list[Waiting[T]]:
        """The next batch, which waits no more; not empty."""
        batch = self._line[: self._max_size]
        del self._line[: self._max_size]
        return batch

    def due(self, before: float) -> list[Waiting[T]]:
        """Those with a deadline earlier than `before`, but never all: the last request is not among them."""
        line: Sequence[tuple[object, ...]] = self._line
        last = bisect_left(line, self._line[-1][:2])
        return self._line[: min(bisect_left(line, (before,)), last)]

    def remove(self, deadline: float, arrival: int) -> list[Waiting[T]]:
        """What still waited of the request that came as `arrival`."""
        line: Sequence[tuple[object, ...]] = self._line
        start = bisect_left(line, (deadline, arrival))
        end = bisect_left(line, (deadline, arrival + 1), lo=start)
        removed = self._line[start:end]
        del self._line[start:end]
        return removed


class PaddedBatchQueue(BatchQueue[T]):
    """A BatchQueue where a batch costs its longest instance times its size (`batch_cost`).

    `take` starts from the first in line, so that nobody starves whatever the others cost, and adds those
    nearest to it in cost while they are `max_size` at most and cost `max_cost` at most: short texts travel
    with short ones, and little is padded. One that alone costs more than `max_cost` travels alone.
    """

    def __init__(self, max_size: int, max_cost: int | None) -> None:
        super().__init__(max_size)
        self._max_cost = math.inf if max_cost is None else max_cost
        self._by_cost: list[tuple[int, Waiting[T]]] = []

    def add(self, waiting: Waiting[T]) -> None:
        super().add(waiting)
        insort(self._by_cost, (waiting.cost, waiting))

    def take(self) -> list[Waiting[T]]:
        start, end = self._around(bisect_left(self._by_cost, (self.first.cost, self.first)))
        batch = [waiting for _, waiting in self._by_cost[start:end]]
        del self._by_cost[start:end]
        for waiting in batch:
            del self._line[bisect_left(self._line, waiting)]
        return batch

    def remove(self, deadline: float, arrival: int) -> list[Waiting[T]]:
        removed = super().remove(deadline, arrival)
        for waiting in removed:
            del self._by_cost[bisect_left(self._by_cost, (waiting.cost, waiting))]
        return removed

    def _around(self, anchor: int) -> tuple[int, int]:
        """Where the batch around `anchor` starts and ends among all by cost; the nearest are neighbours."""
        start, end = anchor, anchor + 1
        middle = longest = self._by_cost[anchor][0]
        while end - start < self._max_size and longest * (end - start + 1) <= self._max_cost:
            to_shorter = middle - self._by_cost[start - 1][0] if start else math.inf
            to_longer = self._to_longer(middle, end, end - start + 1)
            if math.isinf(min(to_shorter, to_longer)):
                break
            if to_shorter < to_longer:
                start -= 1
            else:
                longest = self._by_cost[end][0]
                end += 1
        return start, end

    def _to_longer(self, middle: int, at: int, size: int) -> float:
        """How much more than `middle` the one `at` costs; infinite where a batch of `size` may not."""
        if at == len(self._by_cost) or self._by_cost[at][0] * size > self._max_cost:
            return math.inf
        return self._by_cost[at][0] - middle
