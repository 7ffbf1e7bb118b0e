"""A worker's sign of life, for the health check of its container."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

HEARTBEAT = Path(tempfile.gettempdir(), "dispatcher-worker")  # touched while the event loop turns
BEAT = 5.0  # seconds


def is_alive() -> bool:
    """Whether the event loop of the worker in this container has turned of late."""
    try:
        return time.time() - HEARTBEAT.stat().st_mtime < 3 * BEAT
    except OSError:
        return False
