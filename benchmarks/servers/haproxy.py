"""HAProxy as a reverse proxy: one thread, no log, connections kept alive and shared."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks import machine
from benchmarks.process import Program, free_port, status

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CONFIG = """\
global
  nbthread 1
  maxconn 4096
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  http-reuse always
frontend callers
  bind 127.0.0.1:{port}
  http-request set-path /predictions/m if {{ path /dispatch_model }}
  default_backend torchserve
backend torchserve
  server one {upstream}
"""


def reverse_proxy(folder: Path, cores: Sequence[int], upstream: str) -> tuple[Program, int]:
    """HAProxy that hands `/dispatch_model` on to the model `m` of `upstream`, and its port."""
    folder.mkdir(parents=True)
    port = free_port()
    config = folder / "haproxy.cfg"
    config.write_text(CONFIG.format(port=port, upstream=upstream), encoding="utf-8")
    command = [machine.program("haproxy"), "-db", "-f", str(config)]
    program = Program(command, log=folder / "haproxy.log", cores=cores)
    program.wait_for(lambda: status(f"http://127.0.0.1:{port}/ping") != 0)
    return program, port
