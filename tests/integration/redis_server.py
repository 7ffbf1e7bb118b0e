"""A real Redis as a child process: killed, paused and started again on the same port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from infrastructure.torchserve.process import free_ports
from tests.integration.processes import Process, until

if TYPE_CHECKING:
    from pathlib import Path

HOW = "redis-server is missing: apt-get install redis-server"


def redis_server_program() -> str:
    """Where redis-server is; installed from Debian's packages first where it is missing and we may."""
    if shutil.which("redis-server") is None and shutil.which("apt-get") and os.geteuid() == 0:
        _install()
    return shutil.which("redis-server") or pytest.fail(HOW)


def _install() -> None:
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", "redis-server"]):
        done = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"{HOW}\n{done.stderr[-2000:]}")


@dataclass
class RunningRedis:
    """A Redis of its own in `folder`, that forgets everything when it ends."""

    folder: Path
    options: tuple[str, ...] = ()
    port: int = 0
    process: Process = field(init=False)

    def __post_init__(self) -> None:
        (self.port,) = free_ports([self.port])
        self.process = Process(
            [
                redis_server_program(),
                *("--bind", "127.0.0.1", "--port", str(self.port)),
                *("--save", "", "--appendonly", "no", "--dir", str(self.folder)),
                *self.options,
            ],
            self.folder,
            {"PATH": os.environ["PATH"]},
            self.folder / f"redis-{self.port}.log",
        )

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process.start()
        try:
            until(self._answers, "Redis's first answer", seconds=20)
        except AssertionError:
            self.process.stop()
            raise

    def kill(self) -> None:
        """As `kill -9`."""
        self.process.stop(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps its connections, takes new ones, and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.alive():
            self.resume()
        self.process.stop()

    def _signal(self, what: signal.Signals) -> None:
        assert self.process.running is not None
        self.process.running.send_signal(what)

    def _answers(self) -> bool:
        assert self.process.alive(), self.process.last_words()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return bool(connection.recv(64))
        except OSError:
            return False
