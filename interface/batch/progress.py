"""How far a run is: on a terminal one line that changes, elsewhere a line now and then."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from typing import TYPE_CHECKING

from bootstrap.terminal import say

if TYPE_CHECKING:
    from interface.batch.asking import Asking
    from interface.batch.output import Tally
    from interface.batch.rows import Rows

OFTEN, SELDOM = 0.2, 10.0  # seconds between two lines on a terminal, and elsewhere
CELLS = 24  # of the bar
MINUTE, HOUR = 60, 3600  # seconds


class Progress:
    """Tells of a run that goes on after the rows that are in `tally` already."""

    def __init__(self, tally: Tally, rows: Rows) -> None:
        self._tally = tally
        self._rows = rows
        self._before = tally.rows
        self._began = time.monotonic()
        self._terminal = sys.stdout.isatty()

    async def keep_telling(self, asking: Asking) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(OFTEN if self._terminal else SELDOM)
            self._tell(self.line(asking.trouble))

    def line(self, trouble: str | None) -> str:
        """How far it is now, and what is in the way."""
        done, total = self._tally.rows, max(self._tally.rows, round(self._rows.total()))
        part = done / total if total else 1.0
        about = "" if self._rows.total_is_known else "about "
        words = [f"{part:4.0%} {done:,} of {about}{total:,} rows", f"{self.rate():,.0f}/s"]
        if self.rate():
            words.append(f"{_duration((total - done) / self.rate())} left")
        if self._tally.failed:
            words.append(f"{self._tally.failed.total():,} failed")
        if trouble:
            words.append(f"waiting: {trouble}")
        return (_bar(part) if self._terminal else "") + ", ".join(words)

    def rate(self) -> float:
        """Rows a second of this run."""
        return (self._tally.rows - self._before) / max(self.seconds(), 1e-9)

    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def summary(self) -> str:
        """What there is in the end, errors by kind."""
        tally = self._tally
        asked = tally.rows - self._before
        found = f"{counted(tally.predictions, 'prediction')}, {counted(tally.failed.total(), 'error')}"
        first = f"{counted(tally.rows, 'row')}: {found}."
        if asked:
            first += f" {asked:,} of them in {self.seconds():.1f} s, {self.rate():,.0f} rows/s."
        kinds = [f"{number:8,}  {title}" for title, number in tally.failed.most_common()]
        return "\n".join([first, *kinds])

    def clear(self) -> None:
        """Take the line off the terminal."""
        if self._terminal:
            self._tell("")

    def _tell(self, line: str) -> None:
        if not self._terminal:
            say(line)
            return
        with contextlib.suppress(OSError):
            sys.stdout.write(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stdout.flush()


def counted(number: int, noun: str) -> str:
    """`number` of them: 1 row, 2 rows."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _bar(part: float) -> str:
    full = int(part * CELLS)
    return "█" * full + "░" * (CELLS - full) + " "


def _duration(seconds: float) -> str:
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    if seconds < HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h"
