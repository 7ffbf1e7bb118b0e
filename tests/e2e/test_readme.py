"""What the README says to type does what it says. (`make run` is in test_make_run.py.)"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.integration.processes import ROOT, TORCHSERVE_PYTHON

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.processes import RunningGateway

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\$ (.+)$", README, re.MULTILINE)


def test_every_command_of_the_readme_is_tried_here_or_in_test_make_run() -> None:
    assert [shlex.split(command)[:2] for command in COMMANDS] == [
        ["make", "run"],
        ["curl", "-s"],
        ["curl", "-s"],
        ["model-dispatcher", "batch"],
        ["make", "archive"],
    ]


@pytest.mark.parametrize("line", [command for command in COMMANDS if command.startswith("curl")])
def test_a_curl_line_gets_the_answer_that_is_printed_under_it(gateway: RunningGateway, line: str) -> None:
    words = shlex.split(line)
    url, body = words[2].replace("localhost:8000", gateway.url), words[words.index("-d") + 1]
    printed = json.loads(README.split(line)[1].splitlines()[1])

    answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=60).json()

    assert answer.keys() == printed.keys()
    assert {key: answer[key] for key in ("model_name", "model_version")} == {
        key: printed[key] for key in ("model_name", "model_version")
    }
    for got, expected in zip(predictions(answer), predictions(printed), strict=True):
        assert got["label"] == expected["label"]
        assert got["scores"] == pytest.approx(expected["scores"], abs=0.02)  # processors round differently


def predictions(answer: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer["predictions"] if "predictions" in answer else [answer["prediction"]]
    return found


def test_a_file_is_answered_line_by_line(gateway: RunningGateway, tmp_path: Path) -> None:
    (line,) = (command for command in COMMANDS if command.startswith("model-dispatcher batch"))
    texts = ["I loved it.", "Utterly boring.", ""]
    (tmp_path / "reviews.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in texts))

    run = [sys.executable, "-m", "interface.cli", *shlex.split(line)[1:]]
    done = subprocess.run(
        run,
        cwd=tmp_path,
        env=os.environ | {"DISPATCHER_URL": gateway.url, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1, done.stderr  # one row has no prediction
    lines = [json.loads(each) for each in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [each["row"] for each in lines] == [1, 2, 3]
    assert [each["prediction"]["label"] for each in lines[:2]] == ["positive", "negative"]
    assert lines[2]["error"]["title"] == "The model refused the input"


def test_a_model_of_ones_own_is_archived_without_a_handler(tmp_path: Path) -> None:
    (line,) = (command for command in COMMANDS if command.startswith("make archive"))
    source, archive = tmp_path / "source", ROOT / "model_store" / "my-model.mar"
    assert not archive.exists(), f"{archive} is yours, and would be overwritten by this test."
    make_one = f"import pathlib, tiny_bert; tiny_bert.write_tiny_bert(pathlib.Path({str(source)!r}))"
    paths = os.pathsep.join(
        str(ROOT / folder) for folder in ("tests/model", "model_store/text_classification")
    )
    subprocess.run([TORCHSERVE_PYTHON, "-c", make_one], check=True, env=os.environ | {"PYTHONPATH": paths})
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}

    try:
        command = shlex.split(line.replace("path/or/hub-id", str(source)))
        subprocess.run(command, check=True, cwd=ROOT, env=environment)
        assert archive.stat().st_size > 1000
    finally:
        archive.unlink(missing_ok=True)


def test_the_installed_command_starts(tmp_path: Path) -> None:
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(install, check=True)

    check = [sys.executable, str(tmp_path / "bin" / "model-dispatcher"), "check"]
    printed = subprocess.run(
        check, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )

    assert "local: http://127.0.0.1:8080/" in printed.stdout
