"""What publisher and worker agree on: the queues, and a task message as Celery writes it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from domain.job import Chunk

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pamqp.common import FieldValue

TASK = "dispatcher.work"
INTERACTIVE, BULK, DEAD = "dispatcher.interactive", "dispatcher.bulk", "dispatcher.dead"

MOST_WAITING = 100_000  # messages in one queue; more are refused
DELIVERIES = 20  # that end without an acknowledgement; more than JobRunner makes of it, so that it can tell

_WORK: Mapping[str, str | int] = {
    "x-queue-type": "quorum",
    "x-delivery-limit": DELIVERIES,
    "x-max-length": MOST_WAITING,
    "x-overflow": "reject-publish",
    "x-dead-letter-exchange": "",
    "x-dead-letter-routing-key": DEAD,
    "x-dead-letter-strategy": "at-least-once",  # needs reject-publish
}
QUEUES: Mapping[str, Mapping[str, str | int]] = {
    INTERACTIVE: _WORK,
    BULK: _WORK,
    DEAD: {"x-queue-type": "quorum", "x-max-length": MOST_WAITING},  # the oldest go first
}
"""All durable, with these arguments, and reached by their names through the default exchange.

A queue cannot be declared anew with other arguments: whoever changes one has to delete it first.
"""

NOTHING_FOLLOWS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def headers(task_id: str) -> dict[str, FieldValue]:
    """The headers of Celery's message protocol, version 2, without those that only repeat its defaults.

    Each costs 4 µs, which is why they are left out. Source: docs.celeryq.dev, "Message Protocol".
    """
    return {
        "lang": "py",
        "task": TASK,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "ignore_result": True,
    }


def body(chunks: Sequence[Chunk]) -> bytes:
    """The task's only argument, a list of [job id, chunk number], in Celery's envelope."""
    return json.dumps([[chunks], {}, NOTHING_FOLLOWS], separators=(",", ":")).encode()


def chunks_of(argument: object) -> list[Chunk]:
    """The chunks that the task's argument names. Raises ValueError where it is something else."""
    if not isinstance(argument, list) or not argument:
        raise ValueError("not a list of chunks")
    return [_chunk(pair) for pair in argument]


def _chunk(pair: object) -> Chunk:
    match pair:
        case [str(job), int(number)] if number >= 0 and not isinstance(number, bool):
            return Chunk(job, number)
    raise ValueError("not a chunk")
