"""Workers of jobs as child processes, and what a test asks of them."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import aio_pika

from domain.job import Chunk
from tests.integration.processes import ROOT, Process

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from pathlib import Path

    from tests.integration.rabbitmq_server import RunningRabbitMQ


class Note(NamedTuple):
    what: str
    chunk: Chunk
    at: float


@dataclass
class Workers:
    """Those of one test; all write down in one file what they begin and finish."""

    url: str
    folder: Path
    started: list[Process] = field(default_factory=list)

    def start(self, *, at_once: int = 4, grace: float = 5.0) -> Process:
        options = (self.url, str(self.folder / "record"), str(at_once), str(grace))
        log = self.folder / f"worker{len(self.started)}.log"
        command = [sys.executable, "-m", "tests.integration.job_worker", *options]
        process = Process(command, ROOT, dict(os.environ), log)
        process.start()
        self.started.append(process)
        return process

    def notes(self) -> list[Note]:
        record = self.folder / "record"
        lines = record.read_text().splitlines() if record.exists() else []
        words = [line.split() for line in lines]
        return [Note(what, Chunk(job, int(number)), float(at)) for what, job, number, at in words]

    def begun(self) -> list[Chunk]:
        return [note.chunk for note in self.notes() if note.what == "begun"]

    def done(self) -> list[Chunk]:
        return [note.chunk for note in self.notes() if note.what == "done"]


async def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110  (of another process)
            await asyncio.sleep(0.02)


async def until_waiting(rabbitmq: RunningRabbitMQ, name: str, messages: int, seconds: float = 10.0) -> None:
    """Until so many messages of the queue are with nobody."""
    async with await aio_pika.connect(rabbitmq.url) as connection, asyncio.timeout(seconds):
        channel = await connection.channel()
        while True:
            queue = await channel.declare_queue(name, passive=True)
            if queue.declaration_result.message_count == messages:
                return
            await asyncio.sleep(0.05)


async def exit_code(worker: Process, seconds: float = 10.0) -> int:
    assert worker.running is not None
    return await asyncio.to_thread(worker.running.wait, seconds)


def tell(worker: Process, what: signal.Signals) -> None:
    assert worker.running is not None
    worker.running.send_signal(what)
