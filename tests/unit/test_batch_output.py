"""The output file, and going on after whatever an earlier run has left."""

from __future__ import annotations

import json
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from interface.batch.asking import Outcome
from interface.batch.output import Output
from interface.batch.rows import Row
from interface.batch.stops import Unusable

if TYPE_CHECKING:
    from pathlib import Path

ASKED: dict[str, Any] = {"input": "a.csv", "sha256": "abc", "model": "sentiment", "column": None}
REFUSED = {"title": "Refused", "detail": "too long"}
LINES = (
    b'{"row":1,"prediction":{"label":"good"}}\n'
    b'{"row":2,"error":{"title":"Refused","detail":"too long"}}\n'
    b'{"row":3,"prediction":"\xc3\xb6"}\n'
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def rows(*numbers: int) -> list[Row]:
    return [Row(number, b'"text %d"' % number) for number in numbers]


def begin(path: Path, **more: Any) -> None:
    with closing(Output(path, ASKED, **more)) as output:
        output.write(rows(1, 2, 3), [Outcome({"label": "good"}), Outcome(problem=REFUSED), Outcome("ö")])


def test_there_is_a_line_for_each_row(path: Path) -> None:
    begin(path)

    assert path.read_bytes() == LINES


def test_the_input_is_repeated_where_it_is_asked_for(path: Path) -> None:
    begin(path, with_input=True)

    line = json.loads(path.read_bytes().splitlines()[1])
    assert line == {"row": 2, "input": "text 2", "error": REFUSED}


def test_half_a_character_in_a_prediction_is_kept(path: Path) -> None:
    with closing(Output(path, ASKED)) as output:
        output.write(rows(1), [Outcome("\ud800")])

    assert json.loads(path.read_bytes()) == {"row": 1, "prediction": "\ud800"}


@pytest.mark.parametrize("cut", range(len(LINES) + 1))
def test_wherever_it_was_cut_off_it_goes_on_after_the_last_whole_line(path: Path, cut: int) -> None:
    begin(path)
    path.write_bytes(LINES[:cut])

    with closing(Output(path, ASKED)) as output:
        there = output.tally.rows
        left = slice(there, None)
        outcomes = [Outcome({"label": "good"}), Outcome(problem=REFUSED), Outcome("ö")]
        output.write(rows(1, 2, 3)[left], outcomes[left])
        tally = output.tally

    assert there == LINES[:cut].count(b"\n")
    assert path.read_bytes() == LINES
    assert (tally.rows, tally.predictions, dict(tally.failed)) == (3, 2, {"Refused": 1})


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"sha256": "other"}, "another input, or it has changed"),
        ({"model": "other"}, 'was begun with model "sentiment", not "other"'),
        ({"column": "text"}, 'was begun with column null, not "text"'),
    ],
)
def test_lines_of_another_run_are_left_alone(path: Path, changed: dict[str, Any], told: str) -> None:
    begin(path)

    with pytest.raises(Unusable, match=told) as refusal:
        Output(path, ASKED | changed)

    assert "--overwrite" in str(refusal.value)
    assert path.read_bytes() == LINES


def test_an_input_may_get_another_name(path: Path) -> None:
    begin(path)

    with closing(Output(path, ASKED | {"input": "b.csv"})) as output:
        assert output.tally.rows == 3


def test_an_input_may_have_a_name_that_is_no_text(path: Path) -> None:
    asked = ASKED | {"input": "\udcff.csv"}
    begin(path)
    with closing(Output(path, asked, overwrite=True)) as output:
        output.write(rows(1), [Outcome(1)])

    with closing(Output(path, asked)) as output:
        assert output.tally.rows == 1


def test_a_file_that_is_no_output_of_ours_is_left_alone(path: Path) -> None:
    path.write_text("precious")

    with pytest.raises(Unusable, match="is there already"):
        Output(path, ASKED)

    assert path.read_text() == "precious"


@pytest.mark.parametrize("content", [b"no json\n" * 3, LINES + LINES, b"[1]\n", LINES[40:], b'"error"\n'])
def test_lines_that_are_not_the_first_rows_are_left_alone(path: Path, content: bytes) -> None:
    begin(path)
    path.write_bytes(content)

    with pytest.raises(Unusable, match="has been changed"):
        Output(path, ASKED)

    assert path.read_bytes() == content


def test_overwriting_begins_anew(path: Path) -> None:
    begin(path)

    with closing(Output(path, ASKED | {"model": "other"}, overwrite=True)) as output:
        output.write(rows(1), [Outcome(1)])
    with closing(Output(path, ASKED | {"model": "other"})) as output:
        assert output.tally.rows == 1


def test_two_runs_never_write_at_once(path: Path) -> None:
    with closing(Output(path, ASKED)), pytest.raises(Unusable, match="being written by another run"):
        Output(path, ASKED, overwrite=True)


def test_a_run_that_wrote_nothing_leaves_nothing(path: Path) -> None:
    with closing(Output(path, ASKED)) as output:
        output.withdraw()
    assert list(path.parent.iterdir()) == []

    begin(path)
    with closing(Output(path, ASKED)) as output:
        output.withdraw()
    assert path.read_bytes() == LINES


@pytest.mark.parametrize("name", ["", "no-folder/out.jsonl", "/"])
def test_what_cannot_be_written_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unusable, match=r"is not a file|cannot be written: No such file"):
        Output(tmp_path / name, ASKED)
