"""`model-dispatcher worker`: work the jobs that gateways have accepted."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING

from bootstrap import worker
from bootstrap.gateway import build_worker

if TYPE_CHECKING:
    from bootstrap.settings import Settings


def work(settings: Settings, *, events: bool = False) -> int:
    """Work jobs until SIGINT or SIGTERM, as bootstrap.worker.work; the exit code, 2 without a broker.

    `events` are for the monitor Flower.
    """
    jobs = settings.jobs
    if jobs.broker is None:
        sys.stderr.write(
            "A worker needs jobs.broker and jobs.redis; without them the gateway works its jobs.\n"
        )
        return 2
    options = worker.WorkerOptions(
        broker_url=jobs.broker.get_secret_value(),
        at_once=jobs.concurrency,
        grace=jobs.stop_timeout,
        events=events,
    )
    return worker.work(options, partial(build_worker, settings))
