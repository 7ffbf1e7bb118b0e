"""What has happened to a job, as whoever follows it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from domain.job import JobStatus

if TYPE_CHECKING:
    from domain.job import Job


class JobEvent(NamedTuple):
    """Something that has happened to a job; `id` sorts after those before it."""

    id: tuple[int, int]
    name: str


def events_after(job: Job, last: tuple[int, int]) -> list[JobEvent]:
    """What has happened to `job` since the event `last` ((0, 0): since ever), from its record alone.

    Of progress only the latest is told: each such event says how far the job is.
    """
    finished = job.finished.bit_count()
    happened = [JobEvent((job.replays, 1), JobStatus.QUEUED.value)]
    if job.started_at is not None:
        happened.append(JobEvent((job.replays, 2), JobStatus.RUNNING.value))
    if finished:
        happened.append(JobEvent((job.replays, 2 + finished), "progress"))
    if job.over:
        happened.append(JobEvent((job.replays, 3 + job.chunks), job.status.value))
    return [event for event in happened if event.id > last]
