"""A Redis: for a cache, that keeps nothing on disk; or for jobs, that keeps everything there."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from redis import Redis

from benchmarks import machine
from benchmarks.process import Program, free_port

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def start(folder: Path, cores: Sequence[int] = (), *, durable: bool = False) -> tuple[Program, str]:
    """It, and its address. `durable`: an append-only file, on disk before it answers."""
    folder.mkdir(parents=True)
    port = free_port()
    options = {"port": port, "bind": "127.0.0.1", "save": "", "dir": folder}
    options |= {"appendonly": "yes", "appendfsync": "always"} if durable else {"appendonly": "no"}
    command = [machine.program("redis-server")]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    program = Program(command, log=folder / "redis.log", cores=cores)
    program.wait_for(lambda: _accepts(port))
    return program, f"redis://127.0.0.1:{port}/0"


def forget(url: str) -> None:
    """Remove everything that is kept there."""
    with Redis.from_url(url) as redis:
        redis.flushall()


def keys(url: str) -> int:
    """How many keys it has."""
    with Redis.from_url(url) as redis:
        return int(redis.dbsize())


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
