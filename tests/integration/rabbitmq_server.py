"""A real RabbitMQ as a child process: killed, stopped and started again with the same data."""

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

HOW = "rabbitmq-server is missing: apt-get install rabbitmq-server"
QUIET = """\
listeners.tcp.default = 127.0.0.1:{port}
log.file = false
log.console = true
log.console.level = warning
"""


def rabbitmq_server_program() -> str:
    """Where rabbitmq-server is; installed from Debian's packages first where it is missing and we may."""
    if shutil.which("rabbitmq-server") is None and shutil.which("apt-get") and os.geteuid() == 0:
        _install()
    return _program("rabbitmq-server") or pytest.fail(HOW)


def _program(name: str) -> str | None:
    """Debian's own scripts change to the user rabbitmq, who cannot read our folders; those behind do not."""
    return shutil.which(name, path=f"/usr/lib/rabbitmq/bin:{os.environ['PATH']}")


def _install() -> None:
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", "rabbitmq-server"]):
        done = subprocess.run(["apt-get", *command], env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"{HOW}\n{done.stderr[-2000:]}")


@dataclass
class RunningRabbitMQ:
    """A RabbitMQ of its own in `folder`, which keeps its data over a restart.

    Every node of a machine tells one daemon, epmd, its name; where none runs this one starts it, and it
    stays, as Erlang has it.
    """

    folder: Path
    port: int = 0
    process: Process = field(init=False)

    def __post_init__(self) -> None:
        self.port, distribution = free_ports([self.port, 0])
        home = self.folder / "home"  # Debian's scripts take the cookie from HOME
        home.mkdir(parents=True)
        (self.folder / "rabbitmq.conf").write_text(QUIET.format(port=self.port))
        (self.folder / "enabled_plugins").write_text("[].\n")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "RABBITMQ_NODENAME": f"test-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "data"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            # Schedulers for all cores of a large machine take seconds to start. Distribution, as the
            # listener, on loopback only.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 -kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "NOTIFY_SOCKET": str(self.folder / "nobody"),  # no shell between us and the server
        }
        self.process = Process(
            [rabbitmq_server_program()], self.folder, self._environment, self.folder / "rabbitmq.out"
        )

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> None:
        self.process.start()
        try:
            until(self._answers, "RabbitMQ's first answer", seconds=60)
        except AssertionError:
            self.kill()
            raise

    def kill(self) -> None:
        """As `kill -9`."""
        self.process.stop(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps its connections, and answers nothing."""
        assert self.process.running is not None
        self.process.running.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process.running is not None
        self.process.running.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self.process.alive():
            self.resume()
        self.process.stop(seconds=30)

    def restart(self) -> None:
        self.stop()
        self.start()

    def ctl(self, *arguments: str) -> str:
        """What `rabbitmqctl` says; it takes seconds."""
        program = _program("rabbitmqctl") or pytest.fail(HOW)
        command = [program, "--quiet", "--node", self._environment["RABBITMQ_NODENAME"]]
        done = subprocess.run(
            [*command, *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _answers(self) -> bool:
        """Whether it greets who speaks AMQP; its port is open a little earlier."""
        assert self.process.alive(), self.process.last_words()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(8)[:1] == b"\x01"  # a method frame: Connection.Start
        except OSError:
            return False
