"""Starts a gateway of benchmarks/baselines, as people start one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from benchmarks.process import Program, free_port, status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def start(name: str, folder: Path, cores: Sequence[int], upstream: str) -> tuple[Program, int]:
    """`benchmarks/baselines/{name}.py` under uvicorn, without access log, and its port."""
    folder.mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"benchmarks.baselines.{name}:app", "--port", str(port)]
    command += ["--no-access-log", "--log-level", "warning"]
    environment = {"TORCHSERVE_URL": f"http://{upstream}"}
    program = Program(command, log=folder / "uvicorn.log", cores=cores, environment=environment)
    program.wait_for(lambda: status(f"http://127.0.0.1:{port}/docs") != 0, pause=0.005)
    return program, port
