"""The real programs that the integration tests run, as child processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import httpx

from infrastructure.torchserve.process import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from infrastructure.torchserve.process import TorchServe

ROOT = Path(__file__).resolve().parents[2]
TORCHSERVE_PYTHON = ROOT / ".venv-torchserve" / "bin" / "python"


def until(true: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition, and fail with `what` when it has not come true in time."""
    give_up = time.monotonic() + seconds
    while not true():
        if time.monotonic() > give_up:
            message = f"{what} did not happen within {seconds:g} s"
            raise AssertionError(message)
        time.sleep(0.05)


@dataclass
class Process:
    """A program of ours; its output goes to `log`."""

    command: list[str]
    cwd: Path
    env: dict[str, str]
    log: Path
    running: subprocess.Popen[bytes] | None = None
    _output: IO[bytes] | None = None

    def start(self) -> None:
        self._output = self.log.open("ab")
        self.running = subprocess.Popen(
            self.command,
            cwd=self.cwd,
            env=self.env,
            stdout=self._output,
            stderr=self._output,
            stdin=subprocess.DEVNULL,
        )

    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 20.0) -> int | None:
        """End it, and return its exit code; None where it never ran."""
        if self.running is None:
            return None
        self.running.send_signal(how)
        try:
            code = self.running.wait(seconds)
        except subprocess.TimeoutExpired:
            self.running.kill()
            code = self.running.wait()
        if self._output:
            self._output.close()
        self.running = None
        return code

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


@dataclass
class RunningTorchServe:
    """A TorchServe with its models ready, and what a test asks it behind the gateway's back."""

    server: TorchServe
    models: tuple[str, ...]
    process: Process = field(init=False)

    def start(self) -> None:
        self.server.prepare()
        self.process = Process(
            self.server.command(),
            self.server.home,
            self.server.environment(),
            self.server.home / "torchserve.log",
        )
        self.process.start()
        try:
            until(self._ready, "TorchServe with all models ready")
        except AssertionError:
            self.process.stop()
            raise

    def describe(self, model: str) -> dict[str, Any]:
        """DescribeModel, with a management key renewed for it: it may have expired."""
        token = f"{self.server.management_url}/token?type=management"
        httpx.get(token, headers=self.authorization("API")).raise_for_status()
        answer = httpx.get(
            f"{self.server.management_url}/models/{model}", headers=self.authorization("management")
        )
        described: dict[str, Any] = answer.raise_for_status().json()[0]
        return described

    def pending(self, model: str) -> int:
        pending: int = self.describe(model)["jobQueueStatus"]["pendingRequests"]
        return pending

    def keys(self) -> dict[str, dict[str, str]]:
        """The key file, once it is whole: TorchServe empties it before it writes."""
        keys: dict[str, dict[str, str]] = {}

        def read() -> bool:
            try:
                keys.update(json.loads(self.server.key_file.read_text()))
            except ValueError:
                return False
            return True

        until(read, "a whole key file")
        return keys

    def authorization(self, kind: str) -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys()[kind]['key']}"}

    def _ready(self) -> bool:
        assert self.process.alive(), self.process.last_words()
        try:
            return all(self._model_ready(model) for model in self.models)
        except (httpx.HTTPError, OSError, ValueError):
            return False

    def _model_ready(self, model: str) -> bool:
        workers = self.describe(model)["workers"]
        return bool(workers) and all(worker["status"] == "READY" for worker in workers)


@dataclass
class RunningGateway:
    """The gateway as `model-dispatcher serve` starts it."""

    process: Process
    url: str

    @classmethod
    def start(cls, folder: Path, settings: dict[str, str]) -> RunningGateway:
        """Start one that writes its log into `folder`; `settings` are environment variables, unprefixed."""
        (port,) = free_ports([0])  # no other run of the tests then waits for ours, and takes it for its own
        settings = {"JOBS__PATH": str(folder / f"jobs-{port}.sqlite")} | settings
        variables = {f"DISPATCHER_{name}": value for name, value in settings.items()}
        process = Process(
            [sys.executable, "-m", "interface.cli", "serve", "--port", str(port)],
            ROOT,
            {k: v for k, v in os.environ.items() if not k.startswith("DISPATCHER_")} | variables,
            folder / f"gateway-{port}.log",
        )
        process.start()
        gateway = cls(process, f"http://127.0.0.1:{port}")
        until(gateway.answers, "the gateway's first answer", seconds=30)
        return gateway

    def answers(self) -> bool:
        assert self.process.alive(), self.process.last_words()
        try:
            return self.get("/health/live").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30)

    def ask(self, model: str, *instances: Any, **more: Any) -> httpx.Response:
        headers = more.pop("headers", {})
        body = {"model_name": model, "instances": list(instances), **more}
        return httpx.post(f"{self.url}/dispatch_model", json=body, headers=headers, timeout=60)

    def ready(self) -> bool:
        return self.get("/health/ready").status_code == httpx.codes.OK
