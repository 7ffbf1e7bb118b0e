"""docs/benchmarks.md: written from what was measured, never by hand."""

from __future__ import annotations

from textwrap import indent
from typing import TYPE_CHECKING

from benchmarks import targets
from benchmarks.groups import real
from benchmarks.process import ROOT
from benchmarks.sections import SECTIONS
from benchmarks.servers import gateway
from benchmarks.servers.torchserve import MODELS
from benchmarks.tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.results import Group

PATH = ROOT / "docs" / "benchmarks.md"

HEAD = """\
# Benchmarks

Written by `make bench`; do not edit. The numbers are of one machine; compare within a table, not with others.

## Targets
"""

CONFIGURATION = indent(gateway.toml(gateway.ALL, url="http://…").strip(), "  ")
READING = f"""\
## How to read this

- Every number is the median of its rounds; in brackets the lowest and highest of them. Within a round all
  sides are measured one after the other, so that a slow minute of the machine is slow for all.
- *CPU µs/request* is processor time, user and kernel, of the side's own processes by their own CPU clocks,
  divided by the requests answered. It says what a request costs whether or not the core was busy, and is
  steadier than requests per second.
- Under *Overhead*, *Cache hits*, *Memory*, *Start-up* and *What each policy costs*, the side under test is
  pinned to one core, and load and stub to another; the idle sides stay up and cost nothing.
- Access logs are off and connections kept alive on every side; each is one process on one core.
- Where jobs are measured, nothing is pinned, and *CPU µs/job* is of each program by itself.
- The gateway has one process, and this configuration (with the addresses of Redis and RabbitMQ where it has
  workers); batches of one where *Overhead* and others say so:

  ```toml
{CONFIGURATION}
  ```
- Closed loop: a caller asks again when it is answered (wrk). It says how much can be had, and flatters
  latencies under overload. Open loop: requests come when they come.

## What is not measured

Networks (everything is on loopback), GPUs, more than one gateway process, worker or TorchServe, a cluster of
RabbitMQ or Redis, large inputs, TLS, and tracing. The load shares the machine with what it measures.
"""


def write(groups: Mapping[str, Group]) -> None:
    """Write the document from what has been measured so far."""
    parts = [HEAD, targets.summary(groups), "", *_reservations(groups)]
    for name, section in SECTIONS.items():
        if name == MODELS[0] and not groups.keys().isdisjoint(MODELS):
            parts.append(real.PROSE)
        if name in groups:
            parts += [section.render(groups[name]), "", _measured(groups[name]), ""]
    parts += [READING, *_machine(groups)]
    PATH.write_text("\n".join(parts), encoding="utf-8")


def _reservations(groups: Mapping[str, Group]) -> list[str]:
    unsound = [name for name, group in groups.items() if group.about.keys() & {"quick", "plain"}]
    warning = f"**Not for quoting:** {', '.join(unsound)} (a quick look, or without the policies)."
    missed = [f"- {target.what}. {reason(target.what)}" for target in targets.missed(groups)]
    return [*([warning, ""] if unsound else []), *(["Missed:", "", *missed, ""] if missed else [])]


REASONS: dict[str, str] = {
    "CPU per forwarded request, all policies on, 32 callers / nginx": (
        "The kernel has a sixth of it; the rest is Python and its extensions, spread over 160 calls and "
        "resumptions. Caching a miss and coalescing cost the most (the table of policies): a task that "
        "outlives its caller, fingerprint, JSON for the cache. With batches it is less, as the call to the "
        "model is shared. This machine's neighbours weigh more on Python than on nginx: single rounds of an "
        "evening gave 5.0 to 7.5, whole runs 6.93, then 6.52, 6.75, 6.46, 6.19 and 5.36 as calls were saved."
    ),
    "latency added over direct at 1 caller (p50)": (
        "The load and the stub share a core and the gateway has the other: four wakings across cores, "
        "which cost nginx 0.2 ms on this virtual machine. Ours adds about as much again in Python "
        "with cold caches."
    ),
    "sentiment, unique texts, 64 callers: through us / direct at its best": (
        "The model's worker is busy for 92 to 99 % of the time on both sides, and computes no padding, "
        "whoever makes the batch (docs/decisions/0009-no-padding.md), so neither side can be much faster. "
        "Two runs gave 1.10 and 0.92: in a round of 4 s, batches of 64 come in steps of 16 a second."
    ),
    "the same / direct at TorchServe's defaults": (
        "On this processor (fp32, one thread) a text of a large batch costs more than a third of a lone one."
    ),
    "light, unique texts, 64 callers: through us / direct at its best": (
        "On two cores that load, gateway, TorchServe and its worker share, the gateway's own time decides, "
        "0.13 ms a request, and the neighbours of this virtual machine: two runs gave 1.29 and 1.22."
    ),
    "accepting jobs, 32 callers: embedded / distributed": (
        "HTTP, JSON and the record are the larger part of both, and what makes them cheaper makes both "
        "faster. The embedded gateway writes its database in a thread of the same Python process, where "
        "RabbitMQ and Redis have a core to themselves."
    ),
}
"""Why a target is missed, by the target's words; for people to fill in when they know."""


def reason(what: str) -> str:
    """Why this target is missed."""
    return REASONS.get(what, "The reason is not known yet.")


def _machine(groups: Mapping[str, Group]) -> list[str]:
    """That of every group, where they are not of one machine."""
    described: list[str] = []
    for group in groups.values():
        lines = table(["", ""], group.machine.items())
        if lines not in described:
            described += [
                "",
                f"## The machine of *{group.name}*" if described else "## The machine",
                "",
                lines,
            ]
    return [*described[1:], ""]


def _measured(group: Group) -> str:
    about = group.about
    notes = [f"Measured {about['date']}", f"{about['rounds']} round{'s' if about['rounds'] != '1' else ''}"]
    if "quick" in about:
        notes.append("**a quick look, not a measurement**")
    if "plain" in about:
        notes.append("**without the policies that can be left out**")
    return f"*{', '.join(notes)}.*"
