"""Starts a gateway of benchmarks/baselines, as people start one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.process import Program, free_port, status

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def start(
    name: str,
    folder: Path,
    cores: Sequence[int],
    upstream: str,
    environment: Mapping[str, str] | None = None,
) -> tuple[Program, int]:
    """`benchmarks/baselines/{name}.py` under uvicorn, without access log, and its port."""
    folder.mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.baselines.{name}:app", "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    told = {"TORCHSERVE_URL": f"http://{upstream}", **(environment or {})}
    program = Program(command, log=folder / "uvicorn.log", cores=cores, environment=told)
    program.wait_for(lambda: status(f"http://127.0.0.1:{port}/docs") != 0, pause=0.005)
    return program, port


def start_celery(
    name: str, folder: Path, upstream: str, environment: Mapping[str, str], *, threads: int
) -> Program:
    """The worker of the same, with a pool of threads; it is not waited for."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "celery", "-A", f"benchmarks.baselines.{name}:celery", "worker"]
    command += ["--pool", "threads", "--concurrency", str(threads), "--loglevel", "warning"]
    told = {"TORCHSERVE_URL": f"http://{upstream}", **environment}
    return Program(command, log=folder / "celery.log", environment=told)
