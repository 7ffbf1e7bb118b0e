"""What was promised, held against what was measured; and the guard against getting slower."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.groups import backlog, bulk, goodput, hits, jobs, overhead, real, waiting
from benchmarks.process import BenchmarkError
from benchmarks.results import Group
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from collections.abc import Mapping

BASELINE = Path(__file__).with_name("baseline.json")
GUARDED = "CPU per forwarded request, × nginx"
TOLERANCE = 1.25


@dataclass(frozen=True, slots=True)
class Target:
    """One promise. `measured` is None where it was not measured; `falling`: the smaller, the better."""

    what: str
    measured: float | None
    least: float
    aim: float | None
    unit: str = "×"
    falling: bool = False
    digits: int = 2

    @property
    def verdict(self) -> str:
        """How far the promise is kept."""
        if self.measured is None:
            return "not measured"
        if self.aim is not None and self._reaches(self.aim):
            return "reached"
        return "at least" if self._reaches(self.least) else "**missed**"

    def row(self) -> list[str]:
        """A line of the table."""
        sign = "≤" if self.falling else "≥"
        measured, least, aim = (number(value, self.digits) for value in (self.measured, self.least, self.aim))
        return [self.what, f"{measured} {self.unit}", f"{sign} {least}", f"{sign} {aim}", self.verdict]

    def _reaches(self, bound: float) -> bool:
        assert self.measured is not None
        return self.measured <= bound if self.falling else self.measured >= bound


def targets(groups: Mapping[str, Group]) -> list[Target]:
    """Every promise, with what `groups` say of it."""
    none = Group("none")
    cost, hit = groups.get(overhead.NAME, none), groups.get(hits.NAME, none)
    sentiment, light = groups.get("sentiment", none), groups.get("light", none)
    good, ours, unique = groups.get(goodput.NAME, none), real.OURS, real.closed_load(64)
    return [
        Target(
            "CPU per forwarded request, all policies on, 32 callers / nginx",
            _forwarding(cost),
            6,
            2.5,
            falling=True,
        ),
        _added_latency(cost),
        Target(
            "memory cache hit, CPU per request / nginx cache hit",
            hit.ratio(hits.LOAD, "cpu_each", (hits.MEMORY, hits.NGINX)),
            4,
            1.5,
            falling=True,
        ),
        Target(
            "Redis cache hit, CPU per request / nginx cache hit",
            hit.ratio(hits.LOAD, "cpu_each", (hits.REDIS, hits.NGINX)),
            8,
            4,
            falling=True,
        ),
        Target(
            "sentiment, unique texts, 64 callers: through us / direct at its best",
            sentiment.ratio(unique, "rate", (ours, real.BEST)),
            1.1,
            1.4,
        ),
        Target(
            "the same / direct at TorchServe's defaults",
            sentiment.ratio(unique, "rate", (ours, real.DEFAULTS)),
            2.5,
            4,
        ),
        Target(
            "light, unique texts, 64 callers: through us / direct at its best",
            light.ratio(unique, "rate", (ours, real.BEST)),
            1.3,
            2,
        ),
        Target(
            "sentiment, Zipf texts, 64 callers: through us / direct at its best",
            sentiment.ratio(real.zipf_load(64), "rate", (ours, real.BEST)),
            5,
            10,
        ),
        Target(
            "goodput at 2 × overload, share of capacity",
            _percent(goodput.share(good, ours)),
            90,
            97,
            "%",
            digits=0,
        ),
        Target(
            "sentiment, 1 caller, p50: through us / direct at batch_size 1",
            sentiment.ratio(real.closed_load(1), "p50", (ours, real.DEFAULTS)),
            1.10,
            1.03,
            falling=True,
        ),
        *_of_jobs(groups),
    ]


def summary(groups: Mapping[str, Group]) -> str:
    """The table of promises."""
    header = ["what", "measured", "at least", "aim", ""]
    return table(header, [target.row() for target in targets(groups)])


def missed(groups: Mapping[str, Group]) -> list[Target]:
    """The promises that were measured and not kept."""
    return [target for target in targets(groups) if target.verdict == "**missed**"]


def slower(groups: Mapping[str, Group]) -> str | None:
    """Why the guard objects: forwarding costs more than the committed baseline allows; else None.

    Both sides of the ratio are of the same run, so it hardly depends on the machine.
    """
    measured = _forwarding(groups.get(overhead.NAME, Group(overhead.NAME)))
    known = json.loads(BASELINE.read_text(encoding="utf-8"))[GUARDED]
    if measured is None or measured <= known * TOLERANCE:
        return None
    return (
        f"{GUARDED}: {measured:.2f}, and {known:.2f} was committed in {BASELINE.name} (+25 % is tolerated)."
    )


def accept(groups: Mapping[str, Group]) -> None:
    """Make what was measured the new baseline. Raises BenchmarkError where it was not measured well."""
    group = groups.get(overhead.NAME, Group(overhead.NAME))
    measured = _forwarding(group)
    if measured is None or group.about.keys() & {"quick", "plain"}:
        raise BenchmarkError("Only a full run of overhead, with every policy, can be a baseline.")
    BASELINE.write_text(json.dumps({GUARDED: round(measured, 2)}, indent=1) + "\n", encoding="utf-8")


def _forwarding(group: Group) -> float | None:
    return group.ratio(overhead.MANY, "cpu_each", (overhead.OURS, overhead.NGINX))


def _added_latency(group: Group) -> Target:
    ours, nginx = (overhead.added(group, side) for side in (overhead.OURS, overhead.NGINX))
    return Target(
        "latency added over direct at 1 caller (p50)",
        None if ours is None else ours * 1e3,
        0.5,
        None if nginx is None else nginx * 1e3 + 0.1,
        "ms",
        falling=True,
    )


def _of_jobs(groups: Mapping[str, Group]) -> list[Target]:
    none = Group("none")
    queued, piled = groups.get(jobs.NAME, none), groups.get(backlog.NAME, none)
    usual, alone = (jobs.DISTRIBUTED, jobs.CELERY), (jobs.EMBEDDED, jobs.DISTRIBUTED)
    held = groups.get(waiting.NAME, none).figures.get(waiting.WAITING)
    large = bulk.most(groups.get(bulk.NAME, none))
    return [
        Target(
            "jobs of 32 waiting callers: distributed / FastAPI + Celery",
            queued.ratio(jobs.MANY, "rate", usual),
            3,
            8,
        ),
        Target(
            "accepting jobs, 32 callers: distributed / FastAPI + Celery",
            queued.ratio(jobs.ACCEPTING, "rate", usual),
            3,
            8,
        ),
        Target(
            "accepting jobs, 32 callers: embedded / distributed",
            queued.ratio(jobs.ACCEPTING, "rate", alone),
            1.5,
            4,
        ),
        Target(
            "a backlog of jobs, sentiment / dispatch_model at 64 callers",
            piled.ratio(backlog.LOAD, "rate", (backlog.JOBS, backlog.DISPATCH)),
            0.8,
            1.0,
        ),
        _memory(
            "the gateway's memory with 10,000 waiting callers", held and held / waiting.MEBIBYTE, 400, 200
        ),
        _memory("the gateway's memory over idle, 1,000,000 texts in one job", large, 150, None),
    ]


def _memory(what: str, mebibytes: float | None, least: float, aim: float | None) -> Target:
    return Target(what, mebibytes, least, aim, "MiB", falling=True, digits=0)


def _percent(share: float | None) -> float | None:
    return None if share is None else share * 100
