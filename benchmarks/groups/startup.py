"""How long a start takes."""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.bench import Pinned, fastapi_httpx
from benchmarks.process import running, status
from benchmarks.progress import say
from benchmarks.servers import gateway
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.results import Group

NAME = "startup"
LIVE, READY, BASELINE = "model-dispatcher, alive", "model-dispatcher, ready", "FastAPI + httpx, first answer"
POLL = 0.005  # seconds
OK = 200

PROSE = """\
From the start of the process to the first 200 of `/health/live`, and of `/health/ready`: then the model
server was found and has answered a canary prediction. All policies on; the machine's own file cache is warm.
"""


def measure(bench: Bench) -> Group:
    """Starts of ours and of the baseline, in turns."""
    group = bench.group(NAME)
    times: dict[str, list[float]] = {LIVE: [], READY: [], BASELINE: []}
    with ExitStack() as stack:
        stub = Pinned(bench, stack).stub()
        for number_of_round in range(bench.rounds + 1):
            found = {**_ours(bench, stub), BASELINE: _baseline(bench, stub)}
            if number_of_round:  # the first fills the caches of the file system
                for name, seconds in found.items():
                    times[name].append(seconds)
                say(f"  start {number_of_round}: {', '.join(f'{n} {s:.2f} s' for n, s in found.items())}")
    group.figures = {name: median(seconds) for name, seconds in times.items()}
    return group


def _ours(bench: Bench, stub: str) -> dict[str, float]:
    config = gateway.toml(bench.policies(gateway.ALL), url=f"http://{stub}")
    begun = time.monotonic()
    program, port = gateway.launch(bench.place("gateway"), [bench.gateway_core], config)
    found = {}
    with running(program):
        for name, path in ((LIVE, "/health/live"), (READY, "/health/ready")):
            url = f"http://127.0.0.1:{port}{path}"
            program.wait_for(partial(_answers, url), pause=POLL)
            found[name] = time.monotonic() - begun
    return found


def _answers(url: str) -> bool:
    return status(url) == OK


def _baseline(bench: Bench, stub: str) -> float:
    begun = time.monotonic()
    program, _ = fastapi_httpx(bench.place("baseline"), [bench.gateway_core], stub)  # waits for an answer
    passed = time.monotonic() - begun
    program.stop()
    return passed


def render(group: Group) -> str:
    """The section's text."""
    rows = [[name, number(seconds)] for name, seconds in group.figures.items()]
    return "\n".join(["## Start-up", "", PROSE, table(["", "seconds"], rows)])
