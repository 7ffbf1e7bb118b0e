"""Whether memory stays flat over a million requests."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.bench import Pinned
from benchmarks.load.closed_loop import closed_loop
from benchmarks.process import BenchmarkError
from benchmarks.progress import say
from benchmarks.servers import gateway
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.results import Group

NAME = "memory"
REQUESTS, QUICK_REQUESTS = 1_000_000, 20_000
LONGEST = 180.0  # seconds; a slower gateway answers fewer, and the table says how many
STEP = 5.0  # seconds
MOST, LEAST = 30_000, 1_000  # requests a second that texts are prepared for
MEBIBYTE = 2**20
CACHE_BYTES = 16 * MEBIBYTE

PROSE = f"""\
Resident memory of the gateway with every policy on, 32 callers, unique texts only. Its cache is bounded to
{CACHE_BYTES / MEBIBYTE:.0f} MiB (`cache.max_bytes`), which are soon full; nothing else may grow.
"""


def measure(bench: Bench) -> Group:
    """Resident memory in steps until the requests are done."""
    group = bench.group(NAME)
    wanted = QUICK_REQUESTS if bench.quick else REQUESTS
    done, spent, rate = 0, 0.0, MOST / 2
    small = gateway.CACHE.format(bytes=CACHE_BYTES)
    with ExitStack() as stack:
        pinned = Pinned(bench, stack)
        side = pinned.ours("model-dispatcher", gateway.ALL_SINGLE, pinned.stub(), small)
        if side.program is None:
            raise BenchmarkError("The gateway's memory cannot be seen.")
        group.figures["0"] = side.program.resident_bytes()
        while done < wanted and spent < LONGEST:
            texts = bench.texts.unique(int(STEP * rate * 5))
            sample = closed_loop(side, texts, callers=32, seconds=STEP, core=bench.load_core)
            done, spent, rate = done + sample.requests, spent + sample.seconds, max(sample.rate, LEAST)
            group.figures[str(done)] = side.program.resident_bytes()
            say(f"  memory after {done:,} requests: {group.figures[str(done)] / MEBIBYTE:.1f} MiB")
    return group


def growth(group: Group) -> float | None:
    """The last figure over that at a fifth of the requests: what grew after everything was warm."""
    points = sorted((int(requests), size) for requests, size in group.figures.items())
    warm = [size for requests, size in points if requests >= points[-1][0] / 5]
    return warm[-1] / warm[0] - 1 if len(warm) > 1 else None


def render(group: Group) -> str:
    """The section's text."""
    points = sorted((int(requests), size) for requests, size in group.figures.items())
    last = points[-1][0] if points else 0
    tenths = [next(p for p in points if p[0] >= last * k / 10) for k in range(11)] if points else []
    rows = [[f"{requests:,}", number(size / MEBIBYTE, 1)] for requests, size in dict.fromkeys(tenths)]
    grown = f"From a fifth of the way to the end it grew by {number(growth(group), 1, 100)} %."
    return "\n".join(["## Memory", "", PROSE, table(["requests", "MiB"], rows), "", grown])
