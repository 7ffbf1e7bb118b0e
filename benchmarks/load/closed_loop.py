"""Closed-loop load, by wrk: a fixed number of callers, each of whom asks again when it is answered."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load.texts import write_bodies
from benchmarks.machine import program
from benchmarks.process import BenchmarkError
from benchmarks.results import Sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.servers.side import Side

SCRIPT = Path(__file__).with_suffix(".lua")


def closed_loop(
    side: Side,
    texts: Sequence[str],
    *,
    callers: int,
    seconds: float,
    core: int | None = None,
    may_repeat: bool = False,
) -> Sample:
    """What `side` does under `callers` callers; from one thread, on `core` where one is named.

    Raises BenchmarkError where `texts` came to an end, began anew, and a side with a memory would profit.
    """
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as bodies:
        write_bodies(Path(bodies.name), texts, side.body)
        before, parts_before = side.cpu_seconds(), side.cpu_of_parts()
        said = _wrk(side, bodies.name, callers, seconds, core)
        cpu, parts = side.cpu_seconds() - before, side.cpu_of_parts()
    if side.remembers and not may_repeat and said["sent"] > said["bodies"]:
        raise BenchmarkError(f"{side.name} used up its {len(texts)} texts: give more for {seconds:g} s.")
    return Sample(
        requests=int(said["requests"]),
        seconds=said["seconds"],
        p50=said["p50"],
        p99=said["p99"],
        failed=int(said["failed"]),
        cpu=cpu if side.program else None,
        parts={name: used - parts_before[name] for name, used in parts.items()},
    )


def _wrk(side: Side, bodies: str, callers: int, seconds: float, core: int | None) -> dict[str, float]:
    headers = [part for header in side.headers.items() for part in header]
    pinned = [] if core is None else [program("taskset"), "-c", str(core)]
    command = [*pinned, program("wrk"), "-t1", f"-c{callers}", f"-d{seconds:.0f}s", "--timeout", "30s"]
    command += ["-s", str(SCRIPT), side.url, "--", bodies, *headers]
    wrk = subprocess.Popen(  # noqa: S603  (our own)
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said, _ = wrk.communicate(timeout=seconds + 60)
    finally:
        wrk.kill()
        wrk.wait()
    try:
        figures: dict[str, float] = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        raise BenchmarkError(f"wrk did not measure {side.name}: {said}") from None
    return figures
