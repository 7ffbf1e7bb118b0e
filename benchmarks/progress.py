"""What the one who waits can see."""

from __future__ import annotations

import sys
import time

_BEGUN = time.monotonic()


def say(text: str) -> None:
    """Print `text`, and how long it has taken so far."""
    passed = int(time.monotonic() - _BEGUN)
    sys.stdout.write(f"{passed // 60:2}:{passed % 60:02} {text}\n")
    sys.stdout.flush()
