"""The rows of an input file, one after another, in constant memory.

What is a row: a record of a .csv or .tsv below its header, a line of a .jsonl or .ndjson, a row of a .parquet
(of these, blank lines are none), and every line of a .txt, a blank one too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from interface.batch.parquet import ParquetFile
from interface.batch.stops import Unusable
from interface.batch.text_file import TextFile, Unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Problem: TypeAlias = "dict[str, Any]"  # problem details (RFC 9457), or what looks like them

TEXTS = {
    ".csv": TextFile.comma_separated,
    ".tsv": TextFile.tab_separated,
    ".jsonl": TextFile.json_lines,
    ".ndjson": TextFile.json_lines,
    ".txt": TextFile.plain_lines,
}


@dataclass(frozen=True, slots=True)
class Row:
    """`number` counts from 1. `text` is the instance as JSON; where it has none, `problem` says why."""

    number: int
    text: bytes = b""
    problem: Problem | None = None


class Rows:
    """The rows of the file at `path`, each with the value of `column`.

    Raises Unusable where it is not such a file, or has no such column.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        self._file = _open(path, column)
        self._values = self._file.values()
        self._read = 0

    def skip(self, rows: int) -> int:
        """Leave out that many rows; how many there were to leave out."""
        skipped = sum(1 for _ in islice(self._values, rows))
        self._read += skipped
        return skipped

    def __iter__(self) -> Iterator[Row]:
        """Those that are left. Raises Unusable where the file does not go on like a file of its kind."""
        for value in self._values:
            self._read += 1
            yield _row(self._read, value)

    def total(self) -> float:
        """How many rows there are, as far as one can tell by now."""
        part = self._file.part_read()
        return self._read / part if part else 0.0

    @property
    def total_is_known(self) -> bool:
        return self._file.counted or self._file.part_read() == 1.0

    def close(self) -> None:
        self._file.close()


def spell(value: object) -> bytes:
    """`value` as JSON, in UTF-8. Raises ValueError, TypeError or RecursionError where it is not JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _open(path: Path, column: str | None) -> TextFile | ParquetFile:
    kind = path.suffix.lower()
    try:
        if kind == ".parquet":
            return ParquetFile(path, column)
        if kind in TEXTS:
            return TEXTS[kind](path, column)
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror or error}.") from None
    raise Unusable(f"{path} should be one of {', '.join([*TEXTS, '.parquet'])}; its name says what it is.")


def _row(number: int, value: object) -> Row:
    if isinstance(value, Unreadable):
        return Row(number, problem=_unreadable(value.reason))
    try:
        return Row(number, spell(value))
    except UnicodeEncodeError:
        return Row(number, problem=_unreadable("It is not text in UTF-8."))
    except (TypeError, ValueError, RecursionError):
        kind = type(value).__name__
        return Row(number, problem=_unreadable(f"JSON cannot spell this {kind}."))


def _unreadable(reason: str) -> Problem:
    return {"type": "about:blank", "title": "The row cannot be read", "detail": reason}
