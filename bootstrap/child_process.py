"""Child processes that end with their parent, whatever ends it.

Each is started through this file run as a script, which asks the kernel for that and becomes the command:

    python child_process.py <parent's pid> <signal> <command> …
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(slots=True, eq=False)
class Child:
    """One command, run in a session of its own: a Ctrl-C in the terminal reaches its parent only.

    What it prints goes to the file `log`. `orphaned` is the signal it gets when its parent is gone.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    log: Path
    orphaned: signal.Signals = signal.SIGKILL
    _process: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """The pid of the latest start; it leads a process group."""
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process.pid

    async def start(self) -> None:
        """Start it; what it prints is appended to its log."""
        launcher = (sys.executable, __file__, str(os.getpid()), str(int(self.orphaned)))
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *launcher,
                *self.command,
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def ended(self) -> str:
        """Wait until it has ended, end what it left behind, and say how it ended."""
        if self._process is None:
            return "was never started"
        code = await self._process.wait()
        self.kill()
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    async def stop(self, grace: float) -> None:
        """Ask it to end; after `grace` seconds, end it and all processes of its own."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(grace):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        self.kill()

    def kill(self) -> None:
        """End it at once, and all processes of its own."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a zombie
                os.killpg(self._process.pid, signal.SIGKILL)

    def last_lines(self, count: int = 15) -> str:
        """The end of its log."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 64 * 1024))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-count:])


def record(children: Iterable[Child], path: Path) -> None:
    """Write down which processes run, for `end_leftovers` of the next start."""
    born = {child.pid: _birth(child.pid) for child in children}
    path.write_text(json.dumps([[pid, birth] for pid, birth in born.items() if birth]), encoding="utf-8")


def end_leftovers(path: Path) -> list[int]:
    """End the recorded processes that still run, where the kernel did not: it does on Linux only.

    A process that has the same number but was born at another time is somebody else's.
    """
    ended = []
    for pid, birth in _recorded(path):
        if _birth(pid) == birth:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
                ended.append(pid)
    path.unlink(missing_ok=True)
    return ended


def _recorded(path: Path) -> list[tuple[int, str]]:
    try:
        return [(int(pid), str(birth)) for pid, birth in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):  # none, or cut off by a crash
        return []


def _birth(pid: int) -> str | None:
    """When `pid` was born, as the system writes it; None where it does not run."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{boot} {stat.rpartition(')')[2].split()[19]}"  # field 22 of proc_pid_stat(5), in clock ticks
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _birth_by_ps(pid)


def _birth_by_ps(pid: int) -> str | None:
    command = ("ps", "-o", "lstart=", "-p", str(pid))
    environment = {**os.environ, "LC_ALL": "C", "TZ": "UTC"}
    answer = subprocess.run(  # noqa: S603  (our own)
        command, env=environment, capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or None


def end_with_parent(number: int, parent: int) -> None:
    """Have the kernel send this process signal `number` when process `parent` is gone (Linux)."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # gone before the kernel was asked
        os.kill(os.getpid(), number)


def main() -> None:
    """Become the command."""
    parent, number, *command = sys.argv[1:]
    end_with_parent(int(number), int(parent))
    try:
        os.execvp(command[0], command)  # noqa: S606  (no shell is wanted)
    except OSError as error:
        sys.exit(f"{command[0]}: {error.strerror}")


if __name__ == "__main__":
    main()
