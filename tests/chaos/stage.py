"""All parts of a distributed set-up as processes that can be killed, and started again where they were."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import httpx

from infrastructure.torchserve.process import free_ports
from tests.integration.processes import ROOT, Process, until
from tests.integration.rabbitmq_server import RunningRabbitMQ
from tests.integration.redis_server import RunningRedis

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.processes import RunningTorchServe


class Part(Protocol):
    """Something that a job needs."""

    def kill(self) -> None:
        """As `kill -9`."""
        ...

    def start(self) -> None:
        """Start it, again, with the data it had; return once it answers."""
        ...


@dataclass
class Program:
    """A gateway or a worker."""

    process: Process
    url: str | None = None  # where it answers, if it does

    def kill(self) -> None:
        self.process.stop(signal.SIGKILL)

    def start(self) -> None:
        self.process.start()
        if self.url is not None:
            until(self._answers, "the gateway's first answer", seconds=60)

    def _answers(self) -> bool:
        assert self.process.alive(), self.process.last_words()
        try:
            return httpx.get(f"{self.url}/health/live", timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False


@dataclass
class Model:
    """TorchServe with all its processes: its workers end with it."""

    torchserve: RunningTorchServe

    def kill(self) -> None:
        self.torchserve.process.stop(signal.SIGKILL)

    def start(self) -> None:
        self.torchserve.start()


@dataclass
class Stage:
    """The parts, by name, and where jobs are submitted."""

    parts: dict[str, Part]
    url: str

    def stop(self) -> None:
        for part in self.parts.values():
            part.kill()


def distributed(folder: Path, torchserve: RunningTorchServe, cache: RunningRedis | None = None) -> Stage:
    """One gateway and two workers, before and behind RabbitMQ and a Redis; answers are kept in a `cache`."""
    broker = RunningRabbitMQ(folder / "rabbitmq")
    redis = RunningRedis(folder, ("--appendonly", "yes", "--appendfsync", "always"))
    settings = _settings(torchserve) | {"JOBS__BROKER": broker.url, "JOBS__REDIS": redis.url}
    parts: dict[str, Part] = {"RabbitMQ": broker, "Redis": redis}
    if cache is not None:
        settings |= {"REDIS__URL": cache.url, "MODELS__FAULTY__CACHING": "true"}
        parts["cache"] = cache
    gateway = _gateway(folder, settings)
    workers = {f"worker {i}": Program(_program(folder, f"worker-{i}", settings, "worker")) for i in (1, 2)}
    return _started(parts | {"gateway": gateway} | workers, torchserve, gateway)


def embedded(folder: Path, torchserve: RunningTorchServe) -> Stage:
    """One gateway that does it all."""
    gateway = _gateway(folder, _settings(torchserve) | {"JOBS__PATH": str(folder / "jobs.sqlite")})
    return _started({"gateway": gateway}, torchserve, gateway)


def _started(parts: dict[str, Part], torchserve: RunningTorchServe, gateway: Program) -> Stage:
    """All parts started in their order, beside TorchServe, which runs."""
    assert gateway.url is not None
    stage = Stage(parts | {"TorchServe": Model(torchserve)}, gateway.url)
    try:
        for part in parts.values():
            part.start()
    except BaseException:
        stage.stop()
        raise
    return stage


def _gateway(folder: Path, settings: dict[str, str]) -> Program:
    (port,) = free_ports([0])
    process = _program(folder, "gateway", settings, "serve", "--port", str(port))
    return Program(process, f"http://127.0.0.1:{port}")


def _program(folder: Path, name: str, settings: dict[str, str], *command: str) -> Process:
    variables = {f"DISPATCHER_{key}": value for key, value in settings.items()}
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DISPATCHER_")}
    return Process(
        [sys.executable, "-m", "interface.cli", *command], ROOT, inherited | variables, folder / f"{name}.log"
    )


def _settings(torchserve: RunningTorchServe) -> dict[str, str]:
    return {
        "SERVERS__LOCAL__URL": torchserve.server.url,
        "SERVERS__LOCAL__MANAGEMENT_URL": torchserve.server.management_url,
        "SERVERS__LOCAL__KEY_FILE": str(torchserve.server.key_file),
        "LOG__ACCESS": "false",
    }
