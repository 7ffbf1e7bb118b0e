"""What a person at the terminal sees. A terminal that has gone away is no reason to stop half-way."""

from __future__ import annotations

import contextlib
import shutil
import sys

QUIET = 5.0  # seconds after which the same is said again where there is no terminal


def say(text: str) -> None:
    """Print `text`."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def complain(error: Exception) -> None:
    """Print why it does not go on, to standard error."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"\n{error}\n\n")


class Progress:
    """What is waited for: on a terminal one line that changes, elsewhere a line when there is news."""

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._said, self._said_at = "", 0.0

    def show(self, waited: float, reason: str) -> None:
        """`reason` after `waited` seconds."""
        line = f"Waiting, {waited:.0f} s: {reason}"
        if self._terminal:
            self._replace(line[: shutil.get_terminal_size().columns - 1])
        elif reason != self._said or waited - self._said_at > QUIET:
            self._said, self._said_at = reason, waited
            say(line)

    def close(self) -> None:
        """Clear the line."""
        if self._terminal:
            self._replace("")

    @staticmethod
    def _replace(line: str) -> None:
        with contextlib.suppress(OSError):
            sys.stdout.write(f"\r\033[K{line}")
            sys.stdout.flush()
