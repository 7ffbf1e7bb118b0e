"""`model-dispatcher batch`: a file through a real gateway, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pty
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import settings_for
from tests.integration.processes import ROOT, until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conftest import StartGateway
    from tests.integration.processes import RunningGateway, RunningTorchServe

NOWHERE = "http://127.0.0.1:9"
TEXTS = ["I loved every minute of it.", "Utterly boring,\nfrom start to end.", "What's “new”? 👍"]


@dataclass
class Batch:
    """One command, which can be given again and again."""

    input: Path
    arguments: Sequence[str]

    @property
    def out(self) -> Path:
        return self.input.with_name("out.jsonl")

    def start(self, *more: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "interface.cli", "batch", str(self.input), "-o", str(self.out)]
        return subprocess.Popen(
            [*command, *self.arguments, *more], cwd=ROOT, stdout=stdout, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *more: str) -> tuple[int, str]:
        """The exit code, and what was said."""
        running = self.start(*more)
        said, _ = running.communicate(timeout=120)
        return running.returncode, said

    def lines(self) -> list[dict[str, Any]]:
        """Those that are whole."""
        text = self.out.read_text(encoding="utf-8") if self.out.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def until_lines(self, number: int) -> None:
        until(lambda: len(self.lines()) >= number, f"{number} lines", seconds=30)


def table(folder: Path, texts: Sequence[str]) -> Path:
    path = folder / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerows([("id", "text"), *enumerate(texts)])
    return path


def counting(folder: Path, url: str, rows: int = 150, seconds: float = 0.02) -> Batch:
    """Rows that each take a while, and that the faulty model counts."""
    path = folder / "orders.jsonl"
    run = secrets.token_hex(4)
    orders = [{"do": "count", "key": f"{run}-{i}", "seconds": seconds} for i in range(rows)]
    path.write_text("".join(f"{json.dumps(order)}\n" for order in orders))
    return Batch(path, ["--model", "faulty", "--url", url, "--instances", "4", "--in-flight", "2"])


def keys(batch: Batch) -> list[str]:
    return [json.loads(line)["key"] for line in batch.input.read_text().splitlines()]


def assert_complete(batch: Batch) -> None:
    """Nothing is missing, nothing doubled, all is in order."""
    lines = batch.lines()
    assert [line["row"] for line in lines] == list(range(1, len(lines) + 1))
    assert [line["prediction"]["key"] for line in lines] == keys(batch)


def test_every_row_of_a_csv_gets_what_dispatch_model_says(gateway: RunningGateway, tmp_path: Path) -> None:
    texts = [f"{TEXTS[i % 3]} {i // 3}" for i in range(300)]
    batch = Batch(
        table(tmp_path, texts),
        ["--column", "text", "--model", "sentiment", "--url", gateway.url, "--with-input"],
    )

    code, said = batch.run()

    assert (code, said.split(" of them in")[0]) == (0, "300 rows: 300 predictions, 0 errors. 300")
    expected = gateway.ask("sentiment", *texts).json()["predictions"]
    assert batch.lines() == [
        {"row": row, "input": text, "prediction": prediction}
        for row, (text, prediction) in enumerate(zip(texts, expected, strict=True), start=1)
    ]


def test_a_row_that_the_model_refuses_is_an_error_of_its_own(gateway: RunningGateway, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("Good.\n\nBad.\n")
    batch = Batch(path, ["--model", "sentiment", "--url", gateway.url])

    code, said = batch.run()

    good, refused, bad = batch.lines()
    assert (good["prediction"]["label"], bad["prediction"]["label"]) == ("positive", "negative")
    assert (refused["row"], refused["error"]["status"]) == (2, 422)
    assert code == 1
    assert "3 rows: 2 predictions, 1 error." in said
    assert said.splitlines()[-1].split() == ["1", *refused["error"]["title"].split()]


def test_a_row_that_the_handler_fails_on_fails_alone(gateway: RunningGateway, tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    path.write_text('{"do": "echo"}\n{"do": "raise"}\n{"do": "echo", "x": 1}\n')
    batch = Batch(path, ["--model", "faulty", "--url", gateway.url])

    code, _ = batch.run()

    first, failed, last = batch.lines()
    assert (first["prediction"], last["prediction"]) == ({"do": "echo"}, {"do": "echo", "x": 1})
    assert (failed["error"]["type"], code) == ("/problems/server-fault", 1)


def test_a_row_that_is_more_than_the_gateway_takes_fails_alone(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text(f"Good.\n{'long ' * 1_500_000}\nBad.\n")
    batch = Batch(path, ["--model", "sentiment", "--url", gateway.url, "--patience", "20"])

    code, _ = batch.run()

    good, long, bad = batch.lines()
    assert (good["prediction"]["label"], bad["prediction"]["label"]) == ("positive", "negative")
    assert (code, "error" in long) == (1, True)


def test_killed_again_and_again_it_asks_nothing_twice_that_is_written(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    batch = counting(tmp_path, gateway.url)
    for whole in (30, 60, 90):
        running = batch.start()
        batch.until_lines(whole)
        running.kill()
        running.communicate()
    written = len(batch.lines())
    with batch.out.open("ab") as file:
        file.write(b'{"row":17,"predi')

    code, said = batch.run()

    assert code == 0
    assert f"has {written} rows; going on from there" in said
    assert_complete(batch)
    again = gateway.ask("faulty", *({"do": "count", "key": key} for key in keys(batch)[:30])).json()
    assert {each["times"] for each in again["predictions"]} == {2}
    more_than_once = sum(line["prediction"]["times"] > 1 for line in batch.lines())
    assert more_than_once <= 3 * 8 * 4, "more than was under way when it was killed"


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_it_and_the_same_command_goes_on(
    gateway: RunningGateway, tmp_path: Path, told: signal.Signals
) -> None:
    batch = counting(tmp_path, gateway.url, rows=100)
    running = batch.start()
    batch.until_lines(10)
    running.send_signal(told)
    said, _ = running.communicate(timeout=10)

    assert (running.returncode, said) == (130, "Stopped. Run the same command to go on.\n")
    assert batch.run()[0] == 0
    assert_complete(batch)


def test_a_complete_output_is_told_and_nobody_asked(gateway: RunningGateway, tmp_path: Path) -> None:
    batch = counting(tmp_path, gateway.url, rows=10)
    batch.run()
    before = batch.out.read_bytes()

    code, said = batch.run("--url", NOWHERE)

    assert (code, said) == (0, f"{batch.out} is complete.\n10 rows: 10 predictions, 0 errors.\n")
    assert batch.out.read_bytes() == before


def test_a_gateway_that_is_killed_and_started_again_costs_nothing(
    start_gateway: StartGateway, torchserve: RunningTorchServe, tmp_path: Path
) -> None:
    gateway = start_gateway(**settings_for(torchserve))
    batch = counting(tmp_path, gateway.url)
    running = batch.start()
    for whole, how in ((20, signal.SIGKILL), (80, signal.SIGTERM)):
        batch.until_lines(whole)
        gateway.process.stop(how)
        gateway.process.start()

    said, _ = running.communicate(timeout=120)

    assert (running.returncode, said.count("150 predictions")) == (0, 1)
    assert_complete(batch)


def test_a_torchserve_that_is_killed_and_started_again_costs_nothing(
    start_gateway: StartGateway, own_torchserve: RunningTorchServe, tmp_path: Path
) -> None:
    gateway = start_gateway(**settings_for(own_torchserve))
    batch = counting(tmp_path, gateway.url)
    running = batch.start()
    batch.until_lines(20)
    own_torchserve.process.stop(signal.SIGKILL)
    own_torchserve.start()

    said, _ = running.communicate(timeout=120)

    assert (running.returncode, said.count("150 predictions")) == (0, 1)
    assert_complete(batch)


def test_a_gateway_that_does_not_come_back_ends_it_for_now(tmp_path: Path) -> None:
    batch = counting(tmp_path, NOWHERE, rows=10)

    code, said = batch.run("--patience", "1")

    assert (code, list(tmp_path.iterdir())) == (75, [batch.input])
    assert "Gave up after 1 s without an answer. The gateway does not answer (ConnectError)." in said


def test_an_unknown_model_ends_it_and_leaves_nothing(gateway: RunningGateway, tmp_path: Path) -> None:
    batch = Batch(table(tmp_path, TEXTS), ["--column", "text", "--model", "nope", "--url", gateway.url])

    code, said = batch.run()

    assert (code, list(tmp_path.iterdir())) == (2, [batch.input])
    assert "Served: faulty, sentiment." in said


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("image.csv", [], "is not a text file in UTF-8"),
        ("image.png", [], "its name says what it is"),
        ("none.csv", [], "cannot be read: No such file"),
        ("table.csv", [], "choose one with --column: id, text"),
        ("table.csv", ["--column", "text", "--url", "localhost:8000"], "should be like http://"),
        ("table.csv", ["--column", "text", "--instances", "0"], "a whole number greater than 0"),
        ("table.csv", ["--column", "text", "-o", "table.csv"], "is the input itself"),
        ("table.csv", ["--column", "text", "-o", "."], "is not a file"),
        ("long.txt", [], "a line of more than 16777216 bytes: line 1"),
    ],
)
def test_what_cannot_be_done_is_told_before_anything_is_written(
    tmp_path: Path, name: str, arguments: list[str], told: str
) -> None:
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "table.csv").write_text("id,text\n1,a\n")
    (tmp_path / "long.txt").write_bytes(b"x" * (1 << 24))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    arguments = [str(tmp_path / each) if each == "table.csv" else each for each in arguments]

    code, said = Batch(tmp_path / name, ["--model", "sentiment", "--url", NOWHERE]).run(*arguments)

    assert code == 2
    assert told in said
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_terminal_shows_how_far_it_is(gateway: RunningGateway, tmp_path: Path) -> None:
    batch = counting(tmp_path, gateway.url, rows=100)
    ours, theirs = pty.openpty()
    running = batch.start(stdout=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)

    assert running.wait(timeout=10) == 0
    assert "█" in shown.decode(errors="replace")
    assert b"of about 100 rows" in shown or b"of 100 rows" in shown
