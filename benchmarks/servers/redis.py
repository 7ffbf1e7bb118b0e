"""A Redis that keeps nothing on disk."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from benchmarks import machine
from benchmarks.process import Program, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def start(folder: Path, cores: Sequence[int]) -> tuple[Program, str]:
    """It, and its address."""
    folder.mkdir(parents=True)
    port = free_port()
    options = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "dir": folder}
    command = [machine.program("redis-server")]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    program = Program(command, log=folder / "redis.log", cores=cores)
    program.wait_for(lambda: _accepts(port))
    return program, f"redis://127.0.0.1:{port}/0"


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
