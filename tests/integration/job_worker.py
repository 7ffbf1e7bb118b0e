"""A worker as `model-dispatcher worker` starts it, with work that a test has chosen.

    python -m tests.integration.job_worker <broker url> <record> <at once> <grace> [events]

Each chunk is noted in the file `record` when it is begun, and when it is done. What its job is called says
what it does: `sleep-<seconds>-…`, `fail-…`, `down-<seconds>-…` (until then it cannot be recorded), `die-…`
(the process, in half a second), `doom-…` (the event loop).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bootstrap import worker
from domain.errors import QueueUnavailable
from infrastructure import logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from domain.job import Chunk


@dataclass
class Noting:
    """A Runner that writes down what it does."""

    record: int
    doom: asyncio.Event
    started_at: float

    async def run(self, chunks: Sequence[Chunk]) -> None:
        await asyncio.gather(*map(self._work, chunks))

    async def _work(self, chunk: Chunk) -> None:
        self._note("begun", chunk)
        what, _, rest = chunk.job.partition("-")
        if what == "sleep":
            await asyncio.sleep(float(rest.partition("-")[0]))
        elif what == "fail":
            message = "of no use"
            raise ValueError(message)
        elif what == "down" and time.monotonic() < self.started_at + float(rest.partition("-")[0]):
            raise QueueUnavailable
        elif what == "die":
            await asyncio.sleep(0.5)  # by then it would be acknowledged, if it were early
            os._exit(77)
        elif what == "doom":
            self.doom.set()
            await asyncio.sleep(60)
        self._note("done", chunk)

    def _note(self, what: str, chunk: Chunk) -> None:
        os.write(self.record, f"{what} {chunk.job} {chunk.number} {time.monotonic()}\n".encode())


@asynccontextmanager
async def build(path: str) -> AsyncIterator[Noting]:
    logs.configure("json", "info", access=False)
    record = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    doom = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:

        async def die() -> None:
            await doom.wait()
            message = "the loop's end"
            raise RuntimeError(message)

        watching = tasks.create_task(die())
        yield Noting(record, doom, time.monotonic())
        watching.cancel()
        logging.getLogger("dispatcher").info("runner left")


def main(url: str, record: str, at_once: str, grace: str, *events: str) -> int:
    worker.FAULT_PAUSE = 0.05
    options = worker.WorkerOptions(url, int(at_once), float(grace), events=bool(events))
    return worker.work(options, lambda: build(record))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
