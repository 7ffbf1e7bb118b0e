"""`make run`, as a person uses it: started, tried, interrupted, and killed in every place."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from infrastructure.torchserve.process import free_ports
from tests.integration.processes import ROOT, until

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND_START = 40.0  # seconds; 4 to 6 on an idle machine
MARK = "MAKE_RUN_TEST"

GATEWAY, TORCHSERVE, SUPERVISOR = "interface.cli", "org.pytorch.serve.ModelServer", "bootstrap.local"


@dataclass
class MakeRun:
    """One `make run` in a process group of its own, as a terminal starts it."""

    folder: Path
    port: int = field(default_factory=lambda: free_ports([18_100])[0])
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    make: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
        with (self.folder / "output").open("wb") as output:
            self.make = subprocess.Popen(
                ["make", "run", f"PORT={self.port}", f"STATE={self.folder / 'run'}"],
                cwd=ROOT,
                env=environment | {MARK: self.mark},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_and_wait(self) -> None:
        self.start()
        until(lambda: "Ctrl-C stops everything" in self.said() or self.ended(), "the URLs", seconds=150)
        assert not self.ended(), self.said()

    def said(self) -> str:
        return (self.folder / "output").read_text(encoding="utf-8", errors="replace")

    def ended(self) -> bool:
        return self.make is not None and self.make.poll() is not None

    def exit_code(self) -> int:
        until(self.ended, "the end of make", seconds=30)
        assert self.make is not None
        return int(self.make.returncode)

    def interrupt(self) -> None:
        """Ctrl-C: the terminal signals the whole foreground group."""
        assert self.make is not None
        os.killpg(self.make.pid, signal.SIGINT)

    def kill(self, command: str) -> None:
        (pid,) = (pid for pid, line in self.processes().items() if command in line)
        os.kill(pid, signal.SIGKILL)

    def processes(self) -> dict[int, str]:
        """Everything that descends from this `make run`, by the environment it inherited."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes():
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found[int(process.name)] = line
            except OSError:  # ended, or somebody else's
                continue
        return found

    def assert_nothing_is_left(self) -> None:
        until(lambda: not self.processes(), f"an end of {self.processes()}", seconds=20)
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", self.port)) != 0

    def try_the_printed_line(self) -> httpx.Response:
        """What the printed curl line would send."""
        (line,) = (line for line in self.said().splitlines() if line.lstrip().startswith("curl"))
        words = shlex.split(line)
        (url,) = (word for word in words if word.startswith("http"))
        return httpx.post(url, json=json.loads(words[words.index("-d") + 1]), timeout=30)

    def answers(self) -> bool:
        return self.try_the_printed_line().status_code == httpx.codes.OK


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    run = MakeRun(tmp_path)
    yield run
    for pid in run.processes():
        os.kill(pid, signal.SIGKILL)
    if run.make is not None:
        run.make.wait(10)


def test_it_answers_what_it_says_to_try_and_ctrl_c_leaves_nothing(make_run: MakeRun) -> None:
    make_run.start_and_wait()
    answer = make_run.try_the_printed_line().raise_for_status().json()
    assert answer["model_name"] == "sentiment"
    assert len(answer["predictions"]) == 1
    assert httpx.get(f"http://127.0.0.1:{make_run.port}/docs").status_code == httpx.codes.OK

    make_run.interrupt()

    assert make_run.exit_code() != 0  # make was interrupted, and says so
    assert "Stopped." in make_run.said()
    make_run.assert_nothing_is_left()


def test_a_killed_torchserve_comes_back_and_an_impatient_second_ctrl_c_leaves_nothing(
    make_run: MakeRun,
) -> None:
    make_run.start_and_wait()

    make_run.kill(TORCHSERVE)

    until(lambda: "starting it again" in make_run.said(), "the news of TorchServe's death")
    until(make_run.answers, "an answer after TorchServe's death")
    make_run.interrupt()
    until(lambda: "Stopping" in make_run.said(), "the first Ctrl-C's effect")
    make_run.interrupt()
    make_run.exit_code()
    make_run.assert_nothing_is_left()


def test_a_killed_gateway_ends_everything_with_the_reason_and_the_next_start_works(make_run: MakeRun) -> None:
    make_run.start_and_wait()
    make_run.kill(GATEWAY)
    assert make_run.exit_code() != 0
    assert "The gateway was ended by SIGKILL" in make_run.said()
    make_run.assert_nothing_is_left()

    started = time.monotonic()
    make_run.start_and_wait()
    assert time.monotonic() - started < SECOND_START

    make_run.kill(SUPERVISOR)
    make_run.exit_code()
    make_run.assert_nothing_is_left()


def test_a_taken_port_is_named_together_with_the_way_out(make_run: MakeRun) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", make_run.port))
        other.listen()
        make_run.start()
        assert make_run.exit_code() != 0
    assert f"Port {make_run.port} is taken" in make_run.said()
    assert "make run PORT=" in make_run.said()
