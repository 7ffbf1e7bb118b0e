from __future__ import annotations

import os
import tempfile
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from bootstrap import heartbeat, worker
from bootstrap.worker import JobLoop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    import pytest

    from domain.job import Chunk


class Idle:
    async def run(self, chunks: Sequence[Chunk]) -> None:
        """Done at once."""


@asynccontextmanager
async def build() -> AsyncIterator[Idle]:
    yield Idle()


def test_a_worker_is_alive_while_its_file_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert not heartbeat.is_alive()
    heartbeat.beat()
    assert heartbeat.is_alive()
    long_ago = time.time() - 4 * heartbeat.BEAT
    os.utime(tmp_path / "dispatcher-worker", (long_ago, long_ago))
    assert not heartbeat.is_alive()


def test_a_worker_that_can_give_no_sign_of_life_says_so_once_and_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setattr(worker, "BEAT", 0.001)
    loop = JobLoop(build, threading.Event())

    assert loop.start()
    for _ in range(20):
        loop.work([])
    assert loop.stop(5)

    told = [record.message for record in caplog.records if "sign of life" in record.message]
    assert len(told) == 1
    assert f"No such file or directory: '{tmp_path}/nowhere/dispatcher-worker'" in told[0]
