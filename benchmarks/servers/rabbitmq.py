"""A RabbitMQ of its own, as Debian packages it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from kombu.connection import Connection

from benchmarks import machine
from benchmarks.process import Program, free_port

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

CONFIG = """\
listeners.tcp.default = 127.0.0.1:{port}
log.file = false
log.console = true
log.console.level = warning
"""
GREETING = b"AMQP\x00\x00\x09\x01"


def start(folder: Path) -> tuple[Program, str]:
    """It, once it speaks AMQP, and its address.

    Erlang's epmd is started where none runs, and stays, as Erlang has it.
    """
    home = folder / "home"
    home.mkdir(parents=True)
    port, distribution = free_port(), free_port()
    (folder / "rabbitmq.conf").write_text(CONFIG.format(port=port), encoding="utf-8")
    (folder / "enabled_plugins").write_text("[].\n", encoding="utf-8")
    environment = {
        "HOME": str(home),  # Erlang's cookie is kept there
        "RABBITMQ_NODENAME": f"benchmark-{port}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "NOTIFY_SOCKET": str(folder / "nobody"),  # no shell between us and the server
    }
    program = Program(
        [machine.program("rabbitmq-server")],
        log=folder / "rabbitmq.log",
        environment=environment,
        directory=folder,
    )
    try:
        program.wait_for(lambda: _greets(port))
    except BaseException:
        program.stop()
        raise
    return program, f"amqp://guest:guest@127.0.0.1:{port}//"


def purge(url: str, queues: Iterable[str]) -> None:
    """Empty `queues` of what nobody has been given yet; those that are not there are left out."""
    with Connection(url) as connection:  # type: ignore[no-untyped-call]
        for queue in queues:
            channel = connection.channel()
            try:
                channel.queue_purge(queue)
            except connection.channel_errors:  # 404, and the channel is closed
                continue
            channel.close()


def _greets(port: int) -> bool:
    """Whether it answers who speaks AMQP; its port is open a little earlier."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(GREETING)
            return connection.recv(8)[:1] == b"\x01"  # a method frame: Connection.Start
    except OSError:
        return False
