from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from bootstrap.child_process import Child, end_leftovers, record
from tests.integration.processes import ROOT, until

if TYPE_CHECKING:
    from pathlib import Path


def living(folder: Path, name: str, first: str = "") -> str:
    """A program that holds a lock as long as it lives, and says so when it does."""
    lock = f"import fcntl, time; f = open({str(folder / name)!r}, 'w'); fcntl.flock(f, fcntl.LOCK_EX)"
    return f"{first}\n{lock}\nprint('up', flush=True)\ntime.sleep(60)"


def has_ended(folder: Path, name: str) -> bool:
    with (folder / name).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def started(code: str, folder: Path) -> Child:
    child = Child("it", [sys.executable, "-c", code], dict(os.environ), folder, folder / "log")
    await child.start()
    until(lambda: bool(child.last_lines()), "a word of the child")
    return child


async def test_what_it_prints_is_in_its_log_and_how_it_ended_is_known(tmp_path: Path) -> None:
    child = await started("print('hello'); raise SystemExit(3)", tmp_path)
    assert await child.ended() == "ended with exit code 3"
    assert child.last_lines() == "hello"


async def test_a_ctrl_c_in_our_terminal_does_not_reach_it(tmp_path: Path) -> None:
    child = await started(living(tmp_path, "child"), tmp_path)
    assert os.getsid(child.pid) == child.pid
    await child.stop(grace=10)
    assert await child.ended() == "was ended by SIGTERM"


async def test_what_does_not_end_when_asked_to_is_killed(tmp_path: Path) -> None:
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    child = await started(living(tmp_path, "child", deaf), tmp_path)
    await child.stop(grace=0.05)
    assert await child.ended() == "was ended by SIGKILL"


async def test_processes_of_its_own_end_with_it(tmp_path: Path) -> None:
    grandchild = living(tmp_path, "grandchild")
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    child = await started(parent, tmp_path)
    os.kill(child.pid, signal.SIGKILL)
    await child.ended()
    until(lambda: has_ended(tmp_path, "grandchild"), "the end of the grandchild", seconds=10)


async def test_a_program_that_is_not_there_is_named_in_the_log(tmp_path: Path) -> None:
    child = Child("it", ["no-such-program"], dict(os.environ), tmp_path, tmp_path / "log")
    await child.start()
    assert await child.ended() == "ended with exit code 1"
    assert child.last_lines() == "no-such-program: No such file or directory"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = f"""
import asyncio, os, sys
from pathlib import Path
from bootstrap.child_process import Child

async def main():
    code, folder = {living(tmp_path, "child")!r}, Path({str(tmp_path)!r})
    child = Child("it", [sys.executable, "-c", code], dict(os.environ), folder, folder / "log")
    await child.start()
    await child.ended()

asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        log = tmp_path / "log"
        until(lambda: log.exists() and "up" in log.read_text(), "a word of the child")
        parent.kill()
    until(lambda: has_ended(tmp_path, "child"), "the end of the child", seconds=10)


async def test_a_leftover_is_ended_by_the_next_start(tmp_path: Path) -> None:
    child = await started(living(tmp_path, "child"), tmp_path)
    record([child], tmp_path / "processes.json")

    assert end_leftovers(tmp_path / "processes.json") == [child.pid]

    assert await child.ended() == "was ended by SIGKILL"
    assert end_leftovers(tmp_path / "processes.json") == []


async def test_somebody_elses_process_with_the_same_number_is_left_alone(tmp_path: Path) -> None:
    child = await started(living(tmp_path, "child"), tmp_path)
    (tmp_path / "processes.json").write_text(json.dumps([[child.pid, "at another time"]]))

    assert end_leftovers(tmp_path / "processes.json") == []

    assert not has_ended(tmp_path, "child")
    await child.stop(grace=10)


@pytest.mark.parametrize("content", ["", "[[1, ", "{}", "[1]", '[["x", "y"]]'])
def test_a_record_that_was_cut_off_is_no_hindrance(tmp_path: Path, content: str) -> None:
    (tmp_path / "processes.json").write_text(content)
    assert end_leftovers(tmp_path / "processes.json") == []
