"""What is left when twice as much is asked as can be answered."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import results
from benchmarks.bench import WARM_UP
from benchmarks.groups import real
from benchmarks.load.closed_loop import closed_loop
from benchmarks.load.open_loop import open_loop
from benchmarks.load.rounds import in_turns
from benchmarks.process import running
from benchmarks.servers.torchserve import Batching, RunningTorchServe
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.results import Group, Sample
    from benchmarks.servers.side import Side

NAME = "goodput"
MODEL = "sentiment"
LOAD = "2 × overload"
CAPACITY = "capacity"
OURS, DIRECT = real.OURS, "direct"
DEADLINE = 0.5  # seconds
FACTOR = 2.0

PROSE = f"""\
The sentiment model, unique texts. *Capacity* is what {real.MOST_CALLERS} callers in a closed loop
get through us. Then {FACTOR:g} × that rate, of the same round, arrives in an open loop, and only a 200 within
{DEADLINE * 1e3:.0f} ms of the moment when the request was due counts. Ours is told of the deadline
(`X-Request-Timeout: {DEADLINE:g}`); TorchServe has no such thing, and is asked at its best batch settings
and the same rate. The first half second, in which queues fill, does not count, nor what comes after the last
request: an overloaded server would otherwise get more time to answer than there was to ask.
"""


def measure(bench: Bench) -> Group:
    """Capacity and overload, ours and direct, in turns."""
    group = bench.group(NAME)
    torchserve = RunningTorchServe.start(bench.place("torchserve"))
    with running(torchserve.program), real.through_us(bench, torchserve, MODEL) as ours:
        best = _best_known()
        group.about["direct"] = str(best)
        direct = torchserve.direct(MODEL, best, DIRECT)

        def fill(side: Side, seconds: float) -> Sample:
            texts = bench.texts.unique(int(real.MOST[MODEL] * seconds))
            return closed_loop(side, texts, callers=real.MOST_CALLERS, seconds=seconds)

        def overload(side: Side, seconds: float, seed: int) -> Sample:
            rate = FACTOR * max(1.0, capacities[-1])
            texts = bench.texts.unique(int(rate * seconds * 1.5) + 100)
            return open_loop(side, texts, rate=rate, seconds=seconds, seed=seed, within=DEADLINE)

        def ask(side: Side, number: int) -> Sample:
            closed = side.name.startswith(CAPACITY)
            seconds = (bench.seconds(4, 3) if closed else bench.seconds(5, 3)) if number else WARM_UP
            sample = fill(side, seconds) if closed else overload(side, seconds, number)
            if closed and side.program is ours.program:
                capacities.append(sample.rate)
            side.settle(*bench.texts.unique(1))
            return sample

        capacities: list[float] = []  # through us, round by round
        full = [replace(side, name=f"{CAPACITY} {side.name}") for side in (ours, direct)]
        impatient = replace(ours, headers={"X-Request-Timeout": f"{DEADLINE:g}"})
        group.loads[LOAD] = in_turns((*full, impatient, direct), bench.rounds, ask, LOAD)
        group.figures["offered"] = FACTOR * median(capacities[1:])
    return group


def _best_known() -> Batching:
    """TorchServe's best settings of the latest sweep; its defaults where there was none."""
    swept = results.load(MODEL)
    rates = {} if swept is None else swept.figures
    delays = (real.FIRST_DELAY, *real.OTHER_DELAYS)
    every = [Batching(), *(Batching(size, delay) for size in real.SIZES for delay in delays)]
    return max(every, key=lambda batching: rates.get(str(batching), 0.0))


def capacity(group: Group, side: str) -> float | None:
    """What `side` answers in a second when it is asked as fast as it answers."""
    return group.median(LOAD, f"{CAPACITY} {side}", "rate")


def share(group: Group, side: str) -> float | None:
    """Goodput of `side` as a share of our capacity."""
    good, whole = group.median(LOAD, side, "goodput"), capacity(group, OURS)
    return good / whole if good is not None and whole else None


def render(group: Group) -> str:
    """The section's text."""
    rows = [
        [
            f"{side} ({group.about.get('direct')})" if side == DIRECT else side,
            number(capacity(group, side), 0),
            number(group.median(LOAD, side, "goodput"), 0),
            number(share(group, side), 0, 100),
            number(group.median(LOAD, side, "p50"), 0, 1e3),
            number(group.median(LOAD, side, "p99"), 0, 1e3),
        ]
        for side in (OURS, DIRECT)
    ]
    header = [
        "",
        "capacity/s",
        "in time/s",
        "% of our capacity",
        "p50 of all 200s, ms",
        "p99 of all 200s, ms",
    ]
    offered = f"Offered: {number(group.figures.get('offered'), 0)} requests/s."
    return "\n".join(["## Goodput at twice the load", "", PROSE, offered, "", table(header, rows)])
