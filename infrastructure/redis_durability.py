"""Whether a Redis keeps what it has answered, as that of the jobs has to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domain.events import JobsAtRisk
from infrastructure.redis_batch import Greeting

if TYPE_CHECKING:
    from domain.ports import Observer
    from infrastructure.redis_batch import Replies

NEEDED = {b"appendonly": b"yes", b"appendfsync": b"always", b"maxmemory-policy": b"noeviction"}
"""As docs/jobs.md says, with what is lost otherwise."""


def durability(observe: Observer) -> Greeting:
    """Have Redis asked for how it is set up; where that is otherwise, `observe` hears JobsAtRisk.

    Once, until it has changed. A Redis that does not say, as many that are rented do not, is believed.
    """
    told = ""

    def heard(replies: Replies) -> None:
        nonlocal told
        before, told = told, _faults(replies)
        if told not in ("", before):
            observe(JobsAtRisk(f"Redis has {told}: killed, or full, it may lose jobs."))

    return Greeting([("CONFIG", "GET", name) for name in NEEDED], heard)


def _faults(replies: Replies) -> str:
    faults = []
    for reply in replies:
        match reply:
            case [bytes(name), bytes(value)] if value != (needed := NEEDED.get(name)) and needed:
                faults.append(b"%b %b (jobs need %b)" % (name, value, needed))
    return b", ".join(faults).decode(errors="replace")
