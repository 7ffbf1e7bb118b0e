"""One measured program: where it runs, the processor time it has used, the memory it holds."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from bootstrap import child_process
from infrastructure.torchserve.process import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parents[1]
SIGTERM = 15
GRACE = 15.0  # seconds to end
PAGE = os.sysconf("SC_PAGE_SIZE")


class BenchmarkError(Exception):
    """A measurement cannot be made; the message says what to do."""


class Program:
    """A command running with its output in `log`, on `cores` only where some are named.

    It ends with us whatever ends us, in a session of its own, so that a Ctrl-C reaches us alone.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        cores: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        directory: Path = ROOT,
    ) -> None:
        launcher = (sys.executable, child_process.__file__, str(os.getpid()), str(SIGTERM))
        self.log = log
        with log.open("ab") as output:
            self._running = subprocess.Popen(  # noqa: S603  (our own commands)
                [*launcher, *command],
                cwd=directory,
                env={**_clean_environment(), **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        if cores:
            os.sched_setaffinity(self._running.pid, cores)  # what it starts inherits it

    def cpu_seconds(self) -> float:
        """Processor time of the program and all its processes so far, in user mode and in the kernel.

        From each process's own CPU clock, in nanoseconds: /proc counts in hundredths of a second.
        """
        return sum(_cpu_clock(pid) for pid in self._tree())

    def resident_bytes(self) -> int:
        """Memory it holds: the resident sets of all its processes."""
        return sum(_resident(pid) for pid in self._tree())

    def wait_for(self, ready: Callable[[], bool], seconds: float = 60.0, pause: float = 0.05) -> None:
        """Wait until `ready()`. Raises BenchmarkError with the end of its log where that does not come."""
        give_up = time.monotonic() + seconds
        while not ready():
            if self._running.poll() is not None:
                raise BenchmarkError(f"It ended before it was ready.\n{self.last_words()}")
            if time.monotonic() > give_up:
                raise BenchmarkError(f"It was not ready within {seconds:g} s.\n{self.last_words()}")
            time.sleep(pause)

    def stop(self) -> None:
        """End it, gently at first."""
        with contextlib.suppress(ProcessLookupError):
            self._running.terminate()
        try:
            self._running.wait(GRACE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, 9)
            self._running.wait()

    def last_words(self) -> str:
        """The end of its log."""
        return f"{self.log}:\n{self.log.read_text(errors='replace')[-2000:]}"

    def _tree(self) -> list[int]:
        found = [self._running.pid]
        for pid in found:  # grows while it is walked
            found += _children(pid)
        return found


@contextmanager
def running(program: Program) -> Iterator[Program]:
    """`program`, ended when the block is left."""
    try:
        yield program
    finally:
        program.stop()


def free_port() -> int:
    """A port nobody listens on, below those the kernel gives to outgoing connections."""
    return free_ports([0])[0]


def status(url: str) -> int:
    """The status that a GET of `url` is answered with; 0 where nobody answers."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _clean_environment() -> dict[str, str]:
    """Ours, without settings of another gateway."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}


def _cpu_clock(pid: int) -> float:
    """clock_getcpuclockid(3), which Python lacks: Linux numbers a process's CPU clock by its pid."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:  # ended meanwhile
        return 0.0


def _children(pid: int) -> list[int]:
    children: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += map(int, task.read_text(encoding="ascii").split())
    return children


def _resident(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE
    return 0
