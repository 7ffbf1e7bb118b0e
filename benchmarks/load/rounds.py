"""Sides measured in turns, so that a slower minute of the machine is slower for all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.progress import say

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.results import Sample, Sides
    from benchmarks.servers.side import Side


def in_turns(sides: Sequence[Side], rounds: int, measure: Callable[[Side, int], Sample], what: str) -> Sides:
    """`measure(side, round)` for A, B, C, A, B, C, …; round 0 warms up and does not count."""
    found: Sides = {side.name: [] for side in sides}
    for side in sides:
        measure(side, 0)
    for number in range(1, rounds + 1):
        for side in sides:
            sample = measure(side, number)
            found[side.name].append(sample)
            say(f"  {what}, round {number}/{rounds}, {side.name}: {line(sample)}")
    return found


def line(sample: Sample) -> str:
    """A sample, for who watches."""
    parts = [f"{sample.rate:,.0f}/s", f"p50 {sample.p50 * 1e3:.2f} ms", f"p99 {sample.p99 * 1e3:.2f} ms"]
    if sample.cpu is not None:
        parts.append(f"{sample.cpu_each * 1e6:.0f} µs of CPU each")
    if sample.failed:
        parts.append(f"{sample.failed} failed")
    return ", ".join(parts)
