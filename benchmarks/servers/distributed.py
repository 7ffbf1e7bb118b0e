"""Gateway, worker, RabbitMQ, and a Redis each for jobs and for answers, as in docker-compose.yml."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.process import BenchmarkError, running
from benchmarks.servers import gateway, rabbitmq, redis

if TYPE_CHECKING:
    from contextlib import ExitStack

    from benchmarks.bench import Bench
    from benchmarks.process import Program

THREADS = 64  # of a worker: as many messages it works at once, on every side
QUIET = 0.1  # of a core
LOOK, PATIENCE = 0.2, 10.0  # seconds
QUEUES = ("dispatcher.interactive", "dispatcher.bulk")


@dataclass(frozen=True, slots=True)
class Services:
    """What gateway and worker share. The Redis for jobs has an append-only file, synced before it answers."""

    rabbitmq: Program
    redis: Program
    cache: Program
    broker_url: str
    jobs_url: str
    cache_url: str

    @classmethod
    def start(cls, bench: Bench, stack: ExitStack) -> Services:
        """Start all of them, until `stack` is left."""
        broker, broker_url = rabbitmq.start(bench.place("rabbitmq"))
        stack.enter_context(running(broker))
        jobs, jobs_url = redis.start(bench.place("redis-jobs"), durable=True)
        stack.enter_context(running(jobs))
        cache, cache_url = redis.start(bench.place("redis-cache"))
        stack.enter_context(running(cache))
        return cls(broker, jobs, cache, broker_url, jobs_url, cache_url)

    def tables(self, model: str) -> str:
        """The tables of `dispatcher.toml` that name them."""
        jobs = gateway.JOBS.format(model=model, concurrency=THREADS)
        broker = gateway.BROKER.format(broker=self.broker_url, redis=self.jobs_url)
        return gateway.REDIS.format(url=self.cache_url) + jobs + broker

    def forget(self, *queues: str) -> None:
        """Drop all jobs, and what our queues and `queues` hold, so that no round inherits of another.

        Waits until that is done: RabbitMQ goes on in the background.
        """
        rabbitmq.purge(self.broker_url, (*QUEUES, *queues))
        redis.forget(self.jobs_url)
        redis.forget(self.cache_url)
        busy, give_up = QUIET + 1.0, time.monotonic() + PATIENCE
        while busy > QUIET and time.monotonic() < give_up:
            before = self._cpu_seconds()
            time.sleep(LOOK)
            busy = (self._cpu_seconds() - before) / LOOK

    def _cpu_seconds(self) -> float:
        return sum(each.cpu_seconds() for each in (self.rabbitmq, self.redis, self.cache))


class Distributed:
    """A gateway, and its one worker, which may be stopped and started again."""

    def __init__(self, bench: Bench, stack: ExitStack, config: str) -> None:
        """Start both."""
        self._bench = bench
        self._config = config
        self.gateway, self.port = gateway.start(bench.place("gateway"), (), config)
        stack.enter_context(running(self.gateway))
        self._worker: Program | None = None
        stack.callback(self.stop_worker)
        self.start_worker()

    @property
    def worker(self) -> Program:
        """The worker that runs."""
        if self._worker is None:
            raise BenchmarkError("There is no worker.")
        return self._worker

    def start_worker(self) -> None:
        """Start it; it is not waited for."""
        self.stop_worker()
        self._worker = gateway.launch_worker(self._bench.place("worker"), self._config)

    def stop_worker(self) -> None:
        """End it."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def url(self, path: str) -> str:
        """The gateway's address for `path`."""
        return f"http://127.0.0.1:{self.port}{path}"
