"""How many connections the gateway may hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import resource, uvicorn
from interface.cli import serve

_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
uvicorn.run = lambda *_, **__: print(resource.getrlimit(resource.RLIMIT_NOFILE) == (most, most))
serve("127.0.0.1", 0)
"""


def test_the_gateway_may_open_as_many_files_as_the_system_permits() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert done.stdout == "True\n"
