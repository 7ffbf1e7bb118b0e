"""A real TorchServe with the sentiment model and the light one, each under its own and other batch settings.

One worker for each variant; a variant that is not asked costs memory and no processor time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from benchmarks.load.texts import torchserve_body
from benchmarks.machine import TORCHSERVE_PYTHON
from benchmarks.process import ROOT, BenchmarkError, Program
from benchmarks.servers.side import Side
from infrastructure.torchserve.process import Ports, TorchServe, TorchServeError

if TYPE_CHECKING:
    from pathlib import Path

SENTIMENT = ROOT / "model_store" / "sentiment.mar"
LIGHT = ROOT / "benchmarks" / "light"
A_DAY = 24 * 60.0  # minutes
MODELS = ("sentiment", "light")


@dataclass(frozen=True, slots=True, order=True)
class Batching:
    """TorchServe's own batching: at most `size` requests, or those of `delay` milliseconds."""

    size: int = 1
    delay: int = 1

    def __str__(self) -> str:
        return f"batch_size {self.size}" + (f", max_batch_delay {self.delay} ms" if self.size > 1 else "")


@dataclass(frozen=True, slots=True)
class RunningTorchServe:
    """TorchServe with both models at batch_size 1; `direct` gives the side for any batch settings."""

    server: TorchServe
    program: Program

    @classmethod
    def start(cls, folder: Path) -> RunningTorchServe:
        """Start one that keeps its files in `folder`, and wait for both models."""
        folder.mkdir(parents=True)
        server = TorchServe(
            home=folder / "home",
            model_store=_model_store(folder / "store"),
            models=",".join(f"{model}.mar" for model in MODELS),
            python=TORCHSERVE_PYTHON,
            ports=Ports.free(Ports(18_180, 18_181, 18_182, 18_183, 18_184)),
            token_expiration_min=A_DAY,
            model_api=True,
        )
        try:
            server.prepare()
            command = server.command()
        except TorchServeError as error:
            raise BenchmarkError(f"TorchServe cannot be started. {error}") from None
        program = Program(
            command,
            log=folder / "torchserve.log",
            environment=server.environment(),
            directory=server.home,
        )
        running = cls(server, program)
        try:
            program.wait_for(lambda: all(running._ready(model) for model in MODELS), pause=0.2)
        except BaseException:
            program.stop()
            raise
        return running

    def direct(self, model: str, batching: Batching = Batching(), name: str = "") -> Side:
        """The side that asks TorchServe itself; registers the variant where it is not there yet."""
        served = model
        if batching != Batching():
            served = f"{model}_{batching.size}_{batching.delay}"
            self._register(model, served, batching)
        return Side(
            name or f"direct, {batching}",
            f"{self.server.url}/predictions/{served}",
            torchserve_body,
            headers=self._authorization("inference"),
        )

    def forget(self, model: str, batching: Batching) -> None:
        """Remove a variant."""
        if batching != Batching():
            self._manage("DELETE", f"/models/{model}_{batching.size}_{batching.delay}")

    def _register(self, model: str, served: str, batching: Batching) -> None:
        if self._ready(served):
            return
        query = {
            "url": f"{model}.mar",
            "model_name": served,
            "batch_size": batching.size,
            "max_batch_delay": batching.delay,
            "initial_workers": 1,
            "synchronous": "true",
        }
        self._manage("POST", f"/models?{urlencode(query)}")
        told = self._described(served)
        if (told["batchSize"], told["maxBatchDelay"]) != (batching.size, batching.delay):
            raise BenchmarkError(f"TorchServe registered {served} with other settings: {told}")

    def _ready(self, served: str) -> bool:
        try:
            workers = self._described(served)["workers"]
        except (BenchmarkError, OSError, ValueError):
            return False
        return bool(workers) and all(worker["status"] == "READY" for worker in workers)

    def _described(self, served: str) -> dict[str, Any]:
        described: dict[str, Any] = self._manage("GET", f"/models/{served}")[0]
        return described

    def _manage(self, method: str, path: str) -> Any:  # noqa: ANN401  (what the management API says)
        request = urllib.request.Request(  # noqa: S310  (http, to ourselves)
            self.server.management_url + path, method=method, headers=self._authorization("management")
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise BenchmarkError(f"TorchServe answers {error.code}: {error.read().decode()[:500]}") from None

    def _authorization(self, kind: str) -> dict[str, str]:
        keys = json.loads(self.server.key_file.read_text(encoding="utf-8"))
        return {"Authorization": f"Bearer {keys[kind]['key']}"}


def _model_store(folder: Path) -> Path:
    """Both archives; the light one is made here."""
    folder.mkdir()
    if not SENTIMENT.is_file():
        raise BenchmarkError(f"{SENTIMENT} is missing; `make bench` makes it.")
    shutil.copy(SENTIMENT, folder)
    command = [str(TORCHSERVE_PYTHON.with_name("torch-model-archiver")), "--model-name", "light"]
    command += ["--version", "1.0", "--handler", str(LIGHT / "handler.py")]
    command += ["--extra-files", str(ROOT / "model_store" / "sentiment" / "everyday.tsv")]
    command += ["--config-file", str(LIGHT / "model-config.yaml"), "--export-path", str(folder)]
    done = subprocess.run(  # noqa: S603  (our own)
        command, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"The light model cannot be archived: {done.stderr[-1000:]}")
    return folder
