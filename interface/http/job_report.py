"""A job as its caller sees it."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic_core import to_json
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from domain.job import JobStatus  # noqa: TC001  (pydantic needs it)
from interface.http.answer import Answer
from interface.http.problem import Problem, problem, recorded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from application.job_service import JobService
    from domain.job import Job

PATH = "/jobs"


class Progress(TypedDict):
    """In instances: `done` have a prediction, `failed` an error, of `total`."""

    done: int
    failed: int
    total: int


class JobUrls(TypedDict):
    """Where more of it is; `cancel` is for DELETE."""

    self: str
    predictions: str
    events: str
    cancel: str


class AttemptReport(TypedDict):
    """One call of a webhook: the HTTP status (none: no answer), and why it does not count, if so."""

    at: datetime
    status: int | None
    problem: str | None


class WebhookReport(TypedDict):
    """What came of telling the job's webhook; `next_attempt_at` is null where none is to come."""

    url: str
    delivered: bool
    next_attempt_at: datetime | None
    attempts: list[AttemptReport]


class JobReport(TypedDict):
    """A job. Times are of RFC 3339, in UTC."""

    id: str
    status: JobStatus
    model_name: str
    model_version: Annotated[str | None, Field(description="The version that answered, or was asked for.")]
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: Annotated[datetime, Field(description="When it is given up, if it is not over by then.")]
    progress: Progress
    queue_position: Annotated[
        int | None, Field(description="Jobs before it; null in lists, at submission, and once it is begun.")
    ]
    attempts: Annotated[int, Field(description="How often it was begun, or the part of it that needed most.")]
    error: Annotated[Problem | None, Field(description="The first that was met, also of a single instance.")]
    urls: JobUrls
    webhook: WebhookReport | None


class JobList(TypedDict):
    """Jobs, the newest first; `next` is the path of the older ones, null where there are none."""

    jobs: list[JobReport]
    next: str | None


class Replayed(TypedDict):
    """How many jobs are queued once more."""

    replayed: int


def path(job_id: str) -> str:
    """Where the job is."""
    return f"{PATH}/{job_id}"


async def spell(jobs: JobService, job: Job) -> bytes:
    """`job` as JSON."""
    return _json(job, report(job, await jobs.position(job)))


def accepted(job: Job) -> Answer:
    """`job`, and where it is: 202, or 200 where it is over already."""
    status = HTTPStatus.OK if job.over else HTTPStatus.ACCEPTED
    return Answer(_json(job, report(job)), status, headers=((b"location", path(job.id).encode()),))


def _json(job: Job, told: JobReport) -> bytes:
    """Without the pointers into a request that is no more; to look for them takes as long as all else."""
    return to_json(told) if job.error is None else to_json(told, exclude={"error": {"errors"}})


def spell_list(found: Sequence[Job], following: str | None) -> bytes:
    """Jobs as JSON; `following` is the path of the older ones."""
    jobs: JobList = {"jobs": [report(job) for job in found], "next": following}
    return to_json(jobs, exclude={"jobs": {"__all__": {"error": {"errors"}}}})


def report(job: Job, position: int | None = None) -> JobReport:
    """`job` as it is told."""
    here = path(job.id)
    return {
        "id": job.id,
        "status": job.status,
        "model_name": job.model.name,
        "model_version": job.answered_by or job.model.version,
        "created_at": _time(job.created_at),
        "started_at": _optional(job.started_at),
        "completed_at": _optional(job.completed_at),
        "expires_at": _time(job.expires_at),
        "progress": {"done": job.done, "failed": job.failed, "total": job.total},
        "queue_position": position,
        "attempts": job.most_attempts,
        "error": None if job.error is None else problem(recorded(job.error), here),
        "urls": {
            "self": here,
            "predictions": f"{here}/predictions",
            "events": f"{here}/events",
            "cancel": here,
        },
        "webhook": _webhook(job),
    }


def _webhook(job: Job) -> WebhookReport | None:
    told = job.webhook
    if told is None:
        return None
    return {
        "url": told.url,
        "delivered": told.delivered,
        "next_attempt_at": _optional(told.next_at),
        "attempts": [
            {"at": _time(each.at), "status": each.status, "problem": each.problem} for each in told.attempts
        ],
    }


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _optional(seconds: float | None) -> datetime | None:
    return None if seconds is None else _time(seconds)
