from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from bootstrap import heartbeat

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_worker_is_alive_while_its_file_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beat = tmp_path / "beat"
    monkeypatch.setattr(heartbeat, "HEARTBEAT", beat)
    assert not heartbeat.is_alive()
    beat.touch()
    assert heartbeat.is_alive()
    long_ago = time.time() - 4 * heartbeat.BEAT
    os.utime(beat, (long_ago, long_ago))
    assert not heartbeat.is_alive()
