"""Files of text: CSV, TSV, JSON lines and plain lines, in UTF-8, with a byte order mark or without."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from interface.batch.columns import position
from interface.batch.stops import Unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LONGEST = 1 << 24  # bytes of a line, characters of a field; more is a quotation mark that nobody closed
GLANCE = 4096  # bytes that show whether it is text


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands in the place of a value: this row cannot be read; the next ones can."""

    reason: str


class TextFile:
    """A file of text; its kinds differ in how `values` come out of lines.

    Bytes that are not UTF-8 become lone surrogates, so that they spoil their own row alone.
    """

    counted = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._raw = path.open("rb")
        self._size = os.fstat(self._raw.fileno()).st_size
        if b"\0" in self._raw.peek(GLANCE)[:GLANCE]:
            self._raw.close()
            raise Unusable(f"{path} is not a text file in UTF-8.")
        self._read = 0
        self._values: Iterator[object] = iter(())

    @classmethod
    def comma_separated(cls, path: Path, column: str | None, delimiter: str = ",") -> TextFile:
        """RFC 4180: fields may be quoted, and hold line ends. The first record names the columns."""
        file = cls(path)
        csv.field_size_limit(LONGEST)
        records = csv.reader(file.lines(), delimiter=delimiter, strict=True)
        try:
            columns = file.header(records)
            file._values = _fields(records, len(columns), position(path, columns, column))
        except Unusable:
            file.close()
            raise
        return file

    @classmethod
    def tab_separated(cls, path: Path, column: str | None) -> TextFile:
        """The same with tabs for commas."""
        return cls.comma_separated(path, column, delimiter="\t")

    @classmethod
    def json_lines(cls, path: Path, column: str | None) -> TextFile:
        """A JSON value a line, or what it has under the key `column`."""
        file = cls(path)
        file._values = (_value(line, column) for line in file.lines() if not line.isspace())
        return file

    @classmethod
    def plain_lines(cls, path: Path, column: str | None) -> TextFile:
        """A text a line."""
        if column is not None:
            raise Unusable(f"{path} has no columns: leave out --column.")
        file = cls(path)
        file._values = (line.removesuffix("\n").removesuffix("\r") for line in file.lines())
        return file

    def values(self) -> Iterator[object]:
        """A value a row, or Unreadable. Raises Unusable and OSError."""
        return self._values

    def lines(self) -> Iterator[str]:
        encoding = "utf-8-sig"  # of the first line, which may begin with a mark
        for number, line in enumerate(iter(partial(self._raw.readline, LONGEST), b""), start=1):
            if len(line) == LONGEST:
                raise Unusable(f"{self._path} has a line of more than {LONGEST} bytes: line {number}.")
            self._read += len(line)
            yield line.decode(encoding, "surrogateescape")
            encoding = "utf-8"

    def header(self, records: Iterator[list[str]]) -> list[str]:
        """The first record that is not blank. Raises Unusable."""
        try:
            columns = next((each for each in records if each), None)
        except csv.Error as error:
            raise Unusable(f"{self._path} has no header that can be read: {error}.") from None
        if columns is None:
            raise Unusable(f"{self._path} is empty; its first line should name its columns.")
        try:
            "".join(columns).encode()
        except UnicodeEncodeError:
            raise Unusable(f"{self._path} is not a text file in UTF-8.") from None
        return columns

    def part_read(self) -> float:
        """From 0 to 1, by bytes."""
        return min(1.0, self._read / self._size) if self._size else 1.0

    def close(self) -> None:
        self._raw.close()


def _fields(records: Iterator[list[str]], columns: int, at: int) -> Iterator[object]:
    """The field `at` of each record of that many `columns`; after a broken one the next line begins one."""
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield Unreadable(f"It is not CSV: {error}.")
            continue
        if len(record) == columns:
            yield record[at]
        elif record:
            yield Unreadable(f"It has {len(record)} fields, the header has {columns}.")


def _value(line: str, key: str | None) -> object:
    try:
        value = _parse(line)
    except (ValueError, RecursionError):
        return Unreadable("It is not JSON.")
    if key is None:
        return value
    return value[key] if isinstance(value, dict) and key in value else Unreadable(f"It has no {key!r}.")


def _no_constant(_: str) -> NoReturn:
    raise ValueError  # NaN and Infinity are not JSON


_parse: Callable[[str], object] = partial(json.loads, parse_constant=_no_constant)
