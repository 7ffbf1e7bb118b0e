"""The machine it ran on: its cores, and the versions of everything that took part."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.process import ROOT, BenchmarkError

TORCHSERVE_PYTHON = ROOT / ".venv-torchserve" / "bin" / "python"
PROGRAMS = ("nginx", "haproxy", "wrk", "redis-server")
NJS_MODULES = (
    Path("/usr/lib/nginx/modules/ngx_http_js_module.so"),
    Path("/usr/share/nginx/modules/ngx_http_js_module.so"),
)
PACKAGES = (
    "uvloop",
    "httptools",
    "uvicorn",
    "fastapi",
    "pydantic",
    "httpx",
    "requests",
    "celery",
    "aio-pika",
)
RABBITMQ = Path("/usr/lib/rabbitmq")  # Debian's own scripts in /usr/sbin become another user; these do not
INSTALL = "apt-get install nginx libnginx-mod-http-js haproxy wrk redis-server rabbitmq-server"


def cores() -> tuple[int, int]:
    """The core that a gateway is pinned to, and the one for the load and the stub."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) == 1:
        raise BenchmarkError("Two cores are needed: one for the gateway, one for the load.")
    return allowed[0], allowed[1]


def program(name: str) -> str:
    """Where the program `name` is. Raises BenchmarkError, saying how to get it."""
    found = shutil.which(name, path=f"{RABBITMQ}/bin:{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise BenchmarkError(f"{name} is missing. On Debian and Ubuntu: {INSTALL}")
    return found


def njs_module() -> Path:
    """Where nginx's JavaScript module is."""
    for path in NJS_MODULES:
        if path.is_file():
            return path
    raise BenchmarkError(f"nginx's JavaScript module is missing. On Debian and Ubuntu: {INSTALL}")


def describe() -> dict[str, str]:
    """The machine and the versions, as lines of a table. Raises BenchmarkError where a program is missing."""
    njs_module()
    program("rabbitmq-server")
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "system": f"{_distribution()}, Linux {platform.release()}",
        "Python": platform.python_version(),
        **{name: _version_of(name) for name in PACKAGES},
        **{name: _version_said_by(name) for name in PROGRAMS},
        "RabbitMQ": _rabbitmq(),
        **_torchserve(),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return sys.platform


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "–"


def _version_said_by(name: str) -> str:
    said = _output(program(name), "-v")
    found = re.search(r"\d+\.\d+(\.\d+)?", said)
    return found[0] if found else "–"


def _rabbitmq() -> str:
    """By the folder it is in: asked, it would start."""
    found = sorted(RABBITMQ.glob("lib/rabbitmq_server-*"))
    return found[-1].name.partition("-")[2] if found else "–"


def _torchserve() -> dict[str, str]:
    code = "from importlib.metadata import version as v; print(v('torchserve'), v('torch'))"
    said = _output(str(TORCHSERVE_PYTHON), "-c", code).split()
    return dict(zip(("TorchServe", "torch"), said, strict=False))


def _output(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603  (our own)
            command, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout + done.stderr


def main() -> int:
    """Say what is here, or what is missing."""
    try:
        sys.stdout.write("".join(f"{name}: {value}\n" for name, value in describe().items()))
    except BenchmarkError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
