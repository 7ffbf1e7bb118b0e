"""The sections of docs/benchmarks.md, in order: how each is measured, and how it is written."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.groups import (
    backlog,
    bulk,
    goodput,
    hits,
    jobs,
    memory,
    overhead,
    policies,
    real,
    startup,
    waiting,
)
from benchmarks.servers.torchserve import MODELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.bench import Bench
    from benchmarks.results import Group


class Section(NamedTuple):
    """How a group is measured, and its text."""

    measure: Callable[[Bench], Group]
    render: Callable[[Group], str]


SECTIONS: dict[str, Section] = {
    **{each.NAME: Section(each.measure, each.render) for each in (overhead, hits)},
    **{model: Section(partial(real.measure, model=model), real.render) for model in MODELS},
    **{
        each.NAME: Section(each.measure, each.render)
        for each in (goodput, memory, startup, policies, jobs, backlog, waiting, bulk)
    },
}
