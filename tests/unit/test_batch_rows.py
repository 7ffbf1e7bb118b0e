"""Reading the rows of a file."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest

from interface.batch import text_file
from interface.batch.rows import Rows
from interface.batch.stops import Unusable

if TYPE_CHECKING:
    from pathlib import Path


def read(path: Path, column: str | None = None) -> list[Any]:
    """The values of the file; what is wrong with a row in the place of one that cannot be read."""
    rows = Rows(path, column)
    try:
        return [row.problem["detail"] if row.problem else json.loads(row.text) for row in rows]
    finally:
        rows.close()


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_field_of_csv_may_hold_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'id,text\r\n1,"Good, ""really""\ngood"\r\n2,plain\r\n')

    assert read(path, "text") == ['Good, "really"\ngood', "plain"]


def test_a_byte_order_mark_is_no_part_of_the_first_columns_name(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,id\nschön 👍,1\n".encode("utf-8-sig"))

    assert read(path, "text") == ["schön 👍"]


def test_the_only_column_needs_no_name(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.csv", 'text\na\n"b,c"')) == ["a", "b,c"]


@pytest.mark.parametrize("column", [None, "txt", "id"])
def test_a_column_that_cannot_be_told_is_refused_with_those_that_are_there(
    tmp_path: Path, column: str | None
) -> None:
    path = written(tmp_path, "a.csv", "id,text,id\n1,a,2\n")

    with pytest.raises(Unusable, match="id, text, id"):
        read(path, column)


def test_blank_lines_of_a_csv_are_no_rows_and_empty_fields_are(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", '\nid,text\n\n1,\n\n2,""\n')

    assert read(path, "text") == ["", ""]


def test_a_broken_record_spoils_no_other(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'id,text\n1,a\n2,a,b\n3\n4,"x"y\n5,e\n')

    assert read(path, "text") == [
        "a",
        "It has 3 fields, the header has 2.",
        "It has 1 fields, the header has 2.",
        "It is not CSV: ',' expected after '\"'.",
        "e",
    ]


def test_a_quotation_mark_that_nobody_closes_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", 'id,text\n1,a\n2,"b\n3,c\n')

    assert read(path, "text") == ["a", "It is not CSV: unexpected end of data."]


def test_bytes_that_are_not_utf8_spoil_their_row_alone(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.csv", b"text\na\nsch\xf6n\nb\n")) == [
        "a",
        "It is not text in UTF-8.",
        "b",
    ]


def test_tsv_is_csv_with_tabs(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.tsv", "id\ttext\n1\ta, b\n"), "text") == ["a, b"]


def test_json_lines_are_instances_of_any_type(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '"a\\u2028b"\n\n{"x": [1, 2.5, null]}\r\n  \n12345678901234567890')

    assert read(path) == ["a\u2028b", {"x": [1, 2.5, None]}, 12345678901234567890]


def test_a_key_of_json_lines_can_be_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, "a.ndjson", '{"x": "a"}\n{"y": "b"}\n["x"]\n')

    assert read(path, "x") == ["a", "It has no 'x'.", "It has no 'x'."]


@pytest.mark.parametrize("line", ["{", "NaN", '{"a": Infinity}', "[" * 100_000, "'a'", "9" * 5000])
def test_a_line_that_is_not_json_spoils_its_row_alone(tmp_path: Path, line: str) -> None:
    assert read(written(tmp_path, "a.jsonl", f"1\n{line}\n2\n")) == [1, "It is not JSON.", 2]


@pytest.mark.parametrize("line", ["1e999", '"\\ud800"'])
def test_what_json_can_write_and_nobody_can_send_spoils_its_row_alone(tmp_path: Path, line: str) -> None:
    first, _, last = read(written(tmp_path, "a.jsonl", f"1\n{line}\n2\n"))

    assert (first, last) == (1, 2)


def test_every_line_of_a_text_is_a_row_a_blank_one_too(tmp_path: Path) -> None:
    assert read(written(tmp_path, "a.txt", "a\r\n\n b \n\x85c\n")) == ["a", "", " b ", "\x85c"]


def test_a_text_has_no_columns(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="leave out --column"):
        read(written(tmp_path, "a.txt", "a\n"), "text")


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"id": list(range(3000)), "text": [f"text {i}" for i in range(3000)]})
    pq.write_table(table, path, row_group_size=700)

    assert read(path, "text") == [f"text {i}" for i in range(3000)]


def test_the_rows_of_a_parquet_are_counted_beforehand(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": ["a", "b", "c"]}), path)
    rows = Rows(path, None)
    next(iter(rows))

    assert (rows.total(), rows.total_is_known) == (3, True)
    rows.close()


def test_what_json_cannot_spell_spoils_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1.5, float("nan"), None]}), path)

    assert read(path) == [1.5, "JSON cannot spell this float.", None]


def test_without_pyarrow_one_is_told_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)

    with pytest.raises(Unusable, match="pip install pyarrow"):
        read(written(tmp_path, "a.parquet", b""))


def test_a_damaged_parquet_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [f"text {i}" for i in range(5000)]}), path, compression="none")
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    path.write_bytes(content)

    with pytest.raises(Unusable, match="is damaged after row 0"):
        read(path)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not a text file in UTF-8"),
        ("a.csv", "text\na\n".encode("utf-16"), "not a text file in UTF-8"),
        ("a.csv", b"t\xe9xt\na\n", "not a text file in UTF-8"),
        ("a.csv", b"", "is empty"),
        ("a.csv", b'"text\n', "no header"),
        ("a.parquet", b"text\na\n", "not a Parquet file"),
        ("a.xlsx", b"PK", "its name says what it is"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    with pytest.raises(Unusable, match=told):
        read(written(tmp_path, name, content))


def test_a_file_that_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("none.csv", "folder.csv", "none.parquet"):
        with pytest.raises(Unusable, match="cannot be read"):
            read(tmp_path / name)


def test_a_line_without_an_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_file, "LONGEST", 100)

    with pytest.raises(Unusable, match="a line of more than 100 bytes: line 2"):
        read(written(tmp_path, "a.jsonl", '"a"\n"' + "x" * 200 + '"\n'))


def test_rows_are_numbered_after_those_that_are_left_out(tmp_path: Path) -> None:
    rows = Rows(written(tmp_path, "a.csv", 'text\n"a\nb"\nc\n\nd\n'), None)

    assert rows.skip(2) == 2
    assert [(row.number, row.text) for row in rows] == [(3, b'"d"')]
    assert rows.skip(1) == 0
    rows.close()


def test_the_total_is_estimated_and_known_in_the_end(tmp_path: Path) -> None:
    rows = Rows(written(tmp_path, "a.txt", "12345\n" * 1000), None)
    reading = iter(rows)
    next(reading)

    assert (rows.total(), rows.total_is_known) == (1000, False)
    list(reading)
    assert (rows.total(), rows.total_is_known) == (1000, True)
    rows.close()
