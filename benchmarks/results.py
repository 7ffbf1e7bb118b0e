"""What was measured, as it is kept between runs, and medians of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TypeAlias

from benchmarks.process import BenchmarkError

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Sample:
    """One side under one load. `p50` and `p99` are seconds; `cpu` is its own processor time in seconds.

    `failed` are answers other than 2xx and connections that broke; `goodput` is the rate of answers in time,
    where the load has a time. `late` is how much later than due open-loop requests left (p99, seconds).
    `parts` is the processor time of each program that takes part, in seconds, by its name.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int = 0
    cpu: float | None = None
    goodput: float | None = None
    late: float | None = None
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Good answers in a second."""
        return (self.requests - self.failed) / self.seconds

    @property
    def cpu_each(self) -> float:
        """Processor time for each request, in seconds."""
        return (self.cpu or 0.0) / max(1, self.requests)

    def part_each(self, part: str) -> float | None:
        """The same of one of its `parts`; None where that takes no part."""
        return self.parts[part] / max(1, self.requests) if part in self.parts else None


Sides: TypeAlias = dict[str, list[Sample]]
"""The rounds of every side under one load."""


@dataclass(slots=True)
class Group:
    """One group of measurements: what every side did under every load, and single figures by name.

    `about` says when and how it was measured, `machine` on what.
    """

    name: str
    about: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    loads: dict[str, Sides] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def median(self, load: str, side: str, value: str) -> float | None:
        """The median of `value` (an attribute of Sample) over the rounds; None where it was not measured."""
        samples = self.loads.get(load, {}).get(side)
        return median(getattr(sample, value) for sample in samples) if samples else None

    def part(self, load: str, side: str, part: str) -> float | None:
        """The median of what one part of a side costs for each request, in seconds."""
        found = [sample.part_each(part) for sample in self.loads.get(load, {}).get(side, [])]
        costs = [cost for cost in found if cost is not None]
        return median(costs) if costs else None

    def ratio(self, load: str, value: str, over: tuple[str, str]) -> float | None:
        """`value` of the first side over that of the second, each the median of its rounds."""
        above, below = (self.median(load, side, value) for side in over)
        return above / below if above is not None and below else None

    def save(self) -> None:
        """Keep it for a later run."""
        FOLDER.mkdir(exist_ok=True)
        part = FOLDER / f"{self.name}.part"
        part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        part.rename(FOLDER / f"{self.name}.json")


def load(name: str) -> Group | None:
    """The group that was measured last, None where none was. Raises BenchmarkError where it is unreadable."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    try:
        loads = {
            load: {side: [Sample(**sample) for sample in samples] for side, samples in sides.items()}
            for load, sides in kept["loads"].items()
        }
        return Group(name, kept["about"], kept["machine"], loads, kept["figures"])
    except (TypeError, KeyError):
        raise BenchmarkError(f"{path} was written by another version of the benchmarks; remove it.") from None
