"""Markdown tables, and numbers as they stand in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.results import Group

NONE = "–"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first hold numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | None, digits: int = 2, scale: float = 1.0) -> str:
    """`value` times `scale`, with so many digits after the point."""
    return NONE if value is None else f"{value * scale:,.{digits}f}"


def loaded(group: Group, load: str, cheapest: str | None = None) -> str:
    """What every side did under `load`, with its CPU as a multiple of `cheapest`'s where one is named."""
    header = [
        "",
        "requests/s",
        "p50 ms",
        "p99 ms",
        *(["CPU µs/request", f"× {cheapest}"] if cheapest else []),
    ]
    rows = []
    for side, samples in group.loads.get(load, {}).items():
        p50, p99 = (number(group.median(load, side, value), 2, 1e3) for value in ("p50", "p99"))
        row = [side, number(group.median(load, side, "rate"), 0), p50, p99]
        if cheapest and samples[0].cpu is not None:
            each = sorted(sample.cpu_each for sample in samples)
            median = number(group.median(load, side, "cpu_each"), 1, 1e6)
            row += [
                f"{median} ({number(each[0], 1, 1e6)}–{number(each[-1], 1, 1e6)})",
                number(group.ratio(load, "cpu_each", (side, cheapest))),
            ]
        elif cheapest:
            row += [NONE, NONE]
        if failed := sum(sample.failed for sample in samples):
            row[0] += f" ({failed:,} of {sum(sample.requests for sample in samples):,} failed)"
        rows.append(row)
    return table(header, rows)
