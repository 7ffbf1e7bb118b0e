"""What a person sees who starts the gateway with a configuration that is not usable."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = ["interface.cli", "serve", "--port", "0"]
SERVER = ["uvicorn", "interface.main:app", "--port", "0"]


@pytest.mark.parametrize("words", [COMMAND, SERVER])
def test_a_typing_error_is_told_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    config = tmp_path / "dispatcher.toml"
    config.write_text("[jobs]\ntimeuot = 5\n")

    code, said = started(words, DISPATCHER_CONFIG=str(config))

    assert code != 0
    assert "Traceback" not in said
    assert said.count("timeuot (DISPATCHER_JOBS__TIMEUOT)") == 1


@pytest.mark.parametrize("words", [COMMAND, SERVER])
def test_a_path_that_cannot_be_used_is_told_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    code, said = started(words, DISPATCHER_JOBS__PATH=str(tmp_path / "file" / "jobs.sqlite"))

    assert code != 0
    assert "Traceback" not in said
    assert said.count("jobs.path (DISPATCHER_JOBS__PATH): ") == 1


def started(words: list[str], **variables: str) -> tuple[int, str]:
    """The exit status, and all that was said."""
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout
