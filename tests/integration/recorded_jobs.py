"""Jobs as stores are given them: queued, begun, finished."""

from __future__ import annotations

from typing import Any

from domain.job import Failure, Job
from domain.ports import NewJob
from domain.prediction import ModelRef

NOW = 1_700_000_000.0
SENTIMENT = ModelRef("sentiment")


def job(job_id: str = "a", **fields: Any) -> Job:
    times = {"created_at": NOW, "expires_at": NOW + 600, "retention": 3_600.0, "changed_at": NOW}
    values: dict[str, Any] = {"model": SENTIMENT, "total": 1, "chunk_size": 500, **times, **fields}
    return Job(job_id, **values)


def new(job_id: str, **fields: Any) -> NewJob:
    return NewJob(job(job_id, **fields), b'["good"]')


def begun(queued: Job) -> Job:
    return some(queued.begun(0, NOW + 1))


def finished(running: Job, failed: int = 0) -> Job:
    error = Failure("server-fault", "no") if failed else None
    return some(running.chunk_finished(0, NOW + 2, failed=failed, error=error, version="1.0"))


def some(changed: Job | None) -> Job:
    assert changed is not None
    return changed
