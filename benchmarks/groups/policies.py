"""What each policy costs a request, alone and together with the others."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.bench import Pinned
from benchmarks.servers import gateway
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.results import Group

NAME = "policies"
LOAD = "32 callers"
NONE, ALL, BATCHES = "none", "all of these", "all, with batches"

PROSE = """\
The same gateway, stub and load as under *Overhead*, each time with one policy's line in the configuration.
`none` has what is always there: the total timeout, balancing and the attempt timeout.
"""


def measure(bench: Bench) -> Group:
    """A gateway for each policy, all of them up at the same time and asked in turns."""
    group = bench.group(NAME)
    with ExitStack() as stack:
        pinned = Pinned(bench, stack)
        stub = pinned.stub()
        sides = [pinned.ours(name, policies, stub) for name, policies in gateway.ALONE.items()]
        sides.append(pinned.ours(ALL, gateway.ALL_SINGLE, stub))
        sides.append(pinned.ours(BATCHES, gateway.ALL, pinned.stub(counting=True)))
        group.loads[LOAD] = bench.closed(sides, "policies", 32, bench.seconds(2))
    return group


def render(group: Group) -> str:
    """The section's text."""
    bare = group.median(LOAD, NONE, "cpu_each")
    rows = []
    for side in group.loads.get(LOAD, {}):
        each = group.median(LOAD, side, "cpu_each")
        more = each - bare if each is not None and bare is not None else None
        rate = number(group.median(LOAD, side, "rate"), 0)
        rows.append([side, number(each, 1, 1e6), number(more, 1, 1e6), rate])
    header = ["policies", "CPU µs/request", "more than none", "requests/s"]
    return "\n".join(["## What each policy costs", "", PROSE, table(header, rows)])
