"""The output file: a line of JSON for each row, in order; and going on where an earlier run ended.

Beside `out.jsonl` lies `out.jsonl.batch`, which says what its lines were asked with: so that no run goes on
with the lines of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interface.batch.rows import spell
from interface.batch.stops import Unusable

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from interface.batch.asking import Outcome
    from interface.batch.rows import Problem, Row

NOTE = ".batch"  # what the note beside an output ends in


@dataclass(slots=True)
class Tally:
    """What the output holds: `rows`, and of these the failed ones by the title of their problem."""

    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def predictions(self) -> int:
        return self.rows - self.failed.total()

    def add(self, problem: Problem | None) -> None:
        self.rows += 1
        if problem is not None:
            self.failed[str(problem.get("title", "no title"))] += 1


class Output:
    """The lines that are there, and those that come. One run at a time may write.

    `asked` is what the lines are asked with, by name. Raises Unusable where the file has been begun with
    something else; `overwrite` begins anew.
    """

    def __init__(
        self, path: Path, asked: Mapping[str, Any], *, overwrite: bool = False, with_input: bool = False
    ) -> None:
        self._path = path
        if path.exists() and not path.is_file():
            raise Unusable(f"{path} is not a file.")
        self._note = path.with_name(path.name + NOTE)
        self._with_input = with_input
        self.tally = Tally()
        try:
            self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
            try:
                self._lock()
                self._begin(asked, overwrite=overwrite)
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise Unusable(f"{path} cannot be written: {error.strerror or error}.") from None

    def write(self, rows: Sequence[Row], outcomes: Sequence[Outcome]) -> None:
        """The next lines; they are with the operating system on return. Raises OSError."""
        left = memoryview(b"".join(map(self._line, rows, outcomes)))
        while left:
            left = left[self._file.write(left) :]
        for outcome in outcomes:
            self.tally.add(outcome.problem)

    def withdraw(self) -> None:
        """Leave nothing behind where nothing has been written."""
        if self._size() == 0:
            self._path.unlink()
            self._note.unlink(missing_ok=True)

    def close(self) -> None:
        self._file.close()

    def _size(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def _line(self, row: Row, outcome: Outcome) -> bytes:
        given = b',"input":' + row.text if self._with_input and row.text else b""
        if outcome.problem is None:
            return b'{"row":%d%s,"prediction":%s}\n' % (row.number, given, _json(outcome.prediction))
        return b'{"row":%d%s,"error":%s}\n' % (row.number, given, _json(outcome.problem))

    def _lock(self) -> None:
        if sys.platform != "win32":
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Unusable(f"{self._path} is being written by another run.") from None

    def _begin(self, asked: Mapping[str, Any], *, overwrite: bool) -> None:
        if overwrite:
            self._file.truncate(0)
        if self._size():
            self._check(asked)
            self._go_on()
        else:
            self._write_note(asked)

    def _check(self, asked: Mapping[str, Any]) -> None:
        advice = "Choose another -o, or begin anew with --overwrite."
        try:
            noted = json.loads(self._note.read_bytes())
        except (OSError, ValueError):
            raise Unusable(f"{self._path} is there already, and no run of batch's. {advice}") from None
        for name, value in asked.items():
            before = noted.get(name)
            if before != value and name == "sha256":
                raise Unusable(f"{self._path} was begun with another input, or it has changed. {advice}")
            if before != value and name != "input":
                was, now = (json.dumps(each, ensure_ascii=False) for each in (before, value))
                raise Unusable(f"{self._path} was begun with {name} {was}, not {now}. {advice}")

    def _write_note(self, asked: Mapping[str, Any]) -> None:
        new = self._note.with_name(self._note.name + ".new")
        new.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        new.replace(self._note)

    def _go_on(self) -> None:
        """Count the lines, and cut off the last one where it is torn. Raises Unusable."""
        complete, last = 0, b""
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                complete, last = complete + len(line), line
                self.tally.add(_parse(line).get("error") if b'"error"' in line else None)
        if self.tally.rows and _parse(last).get("row") != self.tally.rows:
            raise Unusable(f"{self._path} has been changed: its last line is not row {self.tally.rows}.")
        self._file.truncate(complete)
        self._file.seek(0, os.SEEK_END)


def digest(path: Path) -> str:
    """The SHA-256 of the file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(value: object) -> bytes:
    try:
        return spell(value)
    except UnicodeEncodeError:  # half a character, which JSON can spell and UTF-8 cannot
        return json.dumps(value).encode()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {}
