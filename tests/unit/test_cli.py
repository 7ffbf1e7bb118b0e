"""The command line itself; what its commands do is tested elsewhere, against real parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import respx

from interface.cli import main

ROOT = Path(__file__).resolve().parents[2]
SERVERS_OWN = {"fastapi", "starlette", "uvicorn", "celery", "aio_pika", "redis", "pydantic"}
NOWHERE = "http://127.0.0.1:9"
REPORT = "print(*{name.partition('.')[0] for name in sys.modules})"


@pytest.mark.parametrize(
    "arguments",
    [["jobs", "list", "--url", NOWHERE], ["batch", "no.csv", "-o", "o", "--model", "m"]],
)
def test_a_command_that_asks_a_gateway_imports_nothing_of_one(arguments: list[str], tmp_path: Path) -> None:
    program = f"import sys; from interface.cli import main; main({arguments!r}); {REPORT}"

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert SERVERS_OWN & set(done.stdout.split()) == set()


@pytest.mark.parametrize(
    "arguments",
    [["--url", "", "list"], ["list", "--url", ""], ["failed", "--url", ""], ["replay", "--url", ""]],
)
def test_the_url_may_stand_before_and_behind_what_is_to_be_done(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["jobs", *arguments])

    assert "--url: should be like http://" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ([], "Say which jobs: their ids, or --all."),
        (["1", "--all"], "Say which jobs: their ids, or --all."),
        (["1", "--model", "m"], "--model goes with --all; an id is of one job, whatever its model."),
    ],
)
def test_a_replay_that_does_not_say_which_jobs_is_refused_before_anything_is_asked(
    arguments: list[str], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["jobs", "--url", NOWHERE, "replay", *arguments])

    assert (status, capsys.readouterr().err) == (2, f"{advice}\n")


@respx.mock
def test_what_a_model_said_cannot_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    job = {
        "id": "j",
        "status": "failed",
        "created_at": "2026-01-01T00:00:00Z",
        "model_name": "m",
        "progress": {"done": 0, "failed": 1, "total": 1},
        "error": {"title": "Refused", "detail": "no\x1b]0;owned\x07 text,\nof two lines"},
    }
    respx.get(f"{NOWHERE}/jobs").respond(json={"jobs": [job], "next": None})

    assert main(["jobs", "list", "--url", NOWHERE]) == 0

    said = capsys.readouterr().out
    assert said.endswith("\tRefused: no?]0;owned? text, of two lines\n")
