"""The monitor Flower, as docs/jobs.md starts it, beside a worker that was started with -E."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from domain.job import Chunk
from infrastructure.celery_messages import BULK, INTERACTIVE, TASK
from infrastructure.celery_queue import CeleryQueue
from infrastructure.torchserve.process import free_ports
from tests.integration.processes import ROOT, Process
from tests.integration.workers import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.rabbitmq_server import RunningRabbitMQ

WITHOUT_LOGIN = {"FLOWER_UNAUTHENTICATED_API": "true"}
PATIENCE = 60.0  # seconds: Flower and the worker start together, on a machine that may be busy


class Flower:
    """What its API says; nothing while it does not answer."""

    def __init__(self, url: str) -> None:
        self._url = url

    def answer(self, path: str) -> dict[str, Any]:
        try:
            answer = httpx.get(f"{self._url}/api/{path}", timeout=10)
        except httpx.TransportError:
            return {}
        found: dict[str, Any] = answer.json() if answer.is_success else {}
        return found

    def states(self) -> list[tuple[str, str]]:
        """Name and state of each task that it has heard of."""
        return [(task["name"], task["state"]) for task in self.answer("tasks").values()]


@pytest.fixture
def worker(rabbitmq: RunningRabbitMQ, tmp_path: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "tests.integration.job_worker", rabbitmq.url, str(tmp_path / "record")]
    process = Process([*command, "4", "5", "events"], ROOT, dict(os.environ), tmp_path / "worker.log")
    process.start()
    yield process
    process.stop(signal.SIGKILL)


@pytest.fixture
def flower(rabbitmq: RunningRabbitMQ, tmp_path: Path) -> Iterator[Flower]:
    (port,) = free_ports([0])
    command = [sys.executable, "-m", "celery", f"--broker={rabbitmq.url}", "flower"]
    where = ["--address=127.0.0.1", f"--port={port}"]
    process = Process([*command, *where], tmp_path, os.environ | WITHOUT_LOGIN, tmp_path / "flower.log")
    process.start()
    yield Flower(f"http://127.0.0.1:{port}")
    process.stop(signal.SIGKILL)


async def test_flower_sees_a_worker_its_queues_and_what_it_has_done(
    rabbitmq: RunningRabbitMQ, worker: Process, flower: Flower
) -> None:
    await until(lambda: len(flower.answer("workers?refresh=1")) == 1, PATIENCE)
    queue = CeleryQueue(rabbitmq.url, timeout=5)
    async with aclosing(queue), asyncio.timeout(PATIENCE):
        while (TASK, "SUCCESS") not in flower.states():  # of what was done before it listened it never hears
            await queue.publish([Chunk("sleep-0.01-x", 0)], bulk=False)
            await asyncio.sleep(0.3)

    ((name, seen),) = flower.answer("workers").items()
    assert name.startswith("dispatcher-")
    assert {each["name"] for each in seen["active_queues"]} == {INTERACTIVE, BULK}
    assert worker.alive()
