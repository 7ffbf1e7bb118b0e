"""What Prometheus is told: how many jobs wait, and for how long, to scale workers by; and what is amiss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from domain.errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from domain.ports import Backlog, Condition, JobStore


class Metrics:
    """The backlog of a store, and what a `queue` and a cache count, read when asked for.

    `queue` says how it is, with its dead letters as `dead` where it has such. `unanswered` counts look-ups
    that a shared cache has not answered; None where there is none. `clock` tells Unix time.
    """

    def __init__(
        self,
        store: JobStore,
        queue: Callable[[], Awaitable[Condition]],
        clock: Callable[[], float],
        unanswered: Callable[[], int] | None = None,
    ) -> None:
        self._unanswered = unanswered
        self._store = store
        self._queue = queue
        self._clock = clock

    async def __call__(self) -> bytes:
        """In Prometheus' text format; while the store cannot be read, only that, of it."""
        backlogs: dict[str, Backlog] = {}
        try:
            for name, bulk in (("interactive", False), ("bulk", True)):
                backlogs[name] = await self._store.backlog(bulk=bulk)
        except QueueUnavailable:
            backlogs.clear()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(self._families(backlogs)))
        registry.register(_Collected(_queue(dict((await self._queue()).counts))))
        if self._unanswered is not None:
            misses = CounterMetricFamily(
                "dispatcher_cache_unanswered", "Misses, as Redis did not answer in time."
            )
            misses.add_metric([], self._unanswered())
            registry.register(_Collected([misses]))
        return generate_latest(registry)

    def _families(self, backlogs: dict[str, Backlog]) -> Iterable[GaugeMetricFamily]:
        up = GaugeMetricFamily("dispatcher_jobs_up", "Whether the store of jobs can be read.")
        up.add_metric([], float(bool(backlogs)))
        queued = GaugeMetricFamily("dispatcher_jobs_queued", "Jobs that wait.", labels=["priority"])
        oldest = GaugeMetricFamily(
            "dispatcher_jobs_oldest_queued_seconds",
            "How long the first of the jobs that wait has done so; 0 where none does.",
            labels=["priority"],
        )
        for name, backlog in backlogs.items():
            queued.add_metric([name], backlog.jobs)
            waited = 0.0 if backlog.oldest is None else max(0.0, self._clock() - backlog.oldest)
            oldest.add_metric([name], waited)
        return up, queued, oldest


def _queue(counts: dict[str, int]) -> Iterable[GaugeMetricFamily]:
    """What a queue counts; nothing where it does not say."""
    dead = counts.pop("dead", None)
    if counts:
        waiting = GaugeMetricFamily(
            "dispatcher_queue_waiting",
            "What waits in the queue for a worker, parts of jobs that run already included.",
            labels=["priority"],
        )
        for name, number in counts.items():
            waiting.add_metric([name], number)
        yield waiting
    if dead is not None:
        told = GaugeMetricFamily("dispatcher_dead_letters", "Messages that were delivered in vain too often.")
        told.add_metric([], dead)
        yield told


class _Collected:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families
