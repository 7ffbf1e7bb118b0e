"""A job: work that was accepted, and what becomes of it.

    queued ──► running ──► succeeded   every instance was asked, and at least one answered
       │          ├──────► failed      given up: none was answered; a person may replay it
       ├──────────┼──────► canceled
       └──────────┴──────► expired

A job is over in exactly one of the last four states, and nothing changes it any more: whoever comes later,
with a second delivery of the same work or a late cancellation, is told None or JobConflict. Only a person
leads one out of `failed`, by `replayed`. Times are in seconds since the epoch (Unix time).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from domain.error_response import kind
from domain.errors import InputRejectedByModel, JobConflict
from domain.prediction import CACHE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.errors import DispatchError
    from domain.prediction import CacheControl, Json, ModelRef
    from domain.webhook import Delivery


class JobStatus(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"  # accepted, and nobody has begun
    RUNNING = "running"  # some of it was begun
    SUCCEEDED = "succeeded"  # over: at least one instance was answered
    FAILED = "failed"  # over: no instance was answered, `error` says why
    CANCELED = "canceled"  # over: its owner did not want it any more
    EXPIRED = "expired"  # over: its time came first


OVER = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELED, JobStatus.EXPIRED})


class Chunk(NamedTuple):
    """A part of a job's instances that is queued, worked and stored as one; `number` counts from 0."""

    job: str
    number: int


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no prediction: the kind of error (error_response.kind), and what was said.

    `code` is the model's own, 400 to 499, where it refused.
    """

    kind: str
    detail: str
    code: int | None = None

    @classmethod
    def of(cls, error: DispatchError) -> Failure:
        code = error.code if isinstance(error, InputRejectedByModel) else None
        return cls(kind(type(error)), str(error), code)


class Job(NamedTuple):
    """One job as it is recorded; its instances and their outcomes are kept beside it, by chunk.

    `finished` has bit i set when chunk i of `chunks` is; `attempts` counts how often each chunk was begun
    that is not. `done` and `failed` count instances of finished chunks, of `total`; all chunks but the last
    have `chunk_size`. `revision` counts the changes of this record, so that of two that change the same one
    only one does (compare and set). `expires_at` is when it is given up; it is forgotten `retention` seconds
    after it is over, or when its webhook was called once, should that be later. `cache` is what its caller
    allows the cache.
    """

    id: str
    model: ModelRef
    total: int
    chunk_size: int
    created_at: float
    expires_at: float
    retention: float
    parameters: Mapping[str, Json] = {}
    partition: str = ""
    bulk: bool = False
    cache: CacheControl = CACHE
    status: JobStatus = JobStatus.QUEUED
    finished: int = 0
    done: int = 0
    failed: int = 0
    attempts: Mapping[int, int] = {}
    most_attempts: int = 0  # of any chunk, so far
    replays: int = 0
    replayed_at: float | None = None  # the last time
    answered_by: str | None = None  # the version that did
    changed_at: float = 0.0
    started_at: float | None = None
    completed_at: float | None = None
    error: Failure | None = None
    webhook: Delivery | None = None
    revision: int = 0

    @property
    def over(self) -> bool:
        return self.status in OVER

    @property
    def chunks(self) -> int:
        """How many there are."""
        return -(-self.total // self.chunk_size)

    def size(self, chunk: int) -> int:
        """The number of instances in `chunk`."""
        return min(self.chunk_size, self.total - chunk * self.chunk_size)

    def has_finished(self, chunk: int) -> bool:
        return bool(self.finished >> chunk & 1)

    def open_chunks(self) -> tuple[Chunk, ...]:
        """Those that are to be worked still; none once it is over."""
        if self.over:
            return ()
        finished = self.finished
        return tuple([Chunk(self.id, i) for i in range(self.chunks) if not finished >> i & 1])

    def untouched_chunks(self) -> tuple[Chunk, ...]:
        """Those of them that nobody works: maybe the queue has never had them."""
        return tuple(chunk for chunk in self.open_chunks() if not self.attempts.get(chunk.number))

    def begun(self, chunk: int, now: float) -> Job | None:
        """After one more attempt at `chunk` has begun; None where there is nothing left to do."""
        if self.over or self.has_finished(chunk):
            return None
        attempt = self.attempts.get(chunk, 0) + 1
        return self._changed(
            now,
            status=JobStatus.RUNNING,
            started_at=now if self.started_at is None else self.started_at,
            attempts={**self.attempts, chunk: attempt},
            most_attempts=max(self.most_attempts, attempt),
        )

    def put_back(self, chunk: int, now: float) -> Job | None:
        """After nobody could be asked about `chunk`: whoever began it lives, so that attempt does not count.

        None where there is nothing left to do.
        """
        if self.over or self.has_finished(chunk):
            return None
        attempts = {**self.attempts, chunk: max(self.attempts.get(chunk, 0) - 1, 0)}
        return self._changed(now, attempts=attempts)

    def chunk_finished(
        self, chunk: int, now: float, *, failed: int, error: Failure | None, version: str | None
    ) -> Job | None:
        """After `chunk` is worked; `failed` of its instances have no prediction, because of `error`.

        None where that came too late: the first to finish a chunk has, and an end is an end.
        """
        if self.over or self.has_finished(chunk):
            return None
        done, all_failed = self.done + self.size(chunk) - failed, self.failed + failed
        finished = self.finished | 1 << chunk
        last = finished == (1 << self.chunks) - 1
        status = JobStatus.RUNNING
        if last:
            status = JobStatus.SUCCEEDED if done else JobStatus.FAILED
        return self._changed(
            now,
            status=status,
            finished=finished,
            done=done,
            failed=all_failed,
            attempts={i: n for i, n in self.attempts.items() if i != chunk},
            answered_by=version or self.answered_by,
            error=error or self.error,
        )

    def canceled(self, now: float) -> Job:
        """After its owner has given it up. Raises JobConflict where it is over."""
        if self.over:
            raise JobConflict(f"The job is {self.status} already.")
        return self._changed(now, status=JobStatus.CANCELED)

    def expired(self, now: float) -> Job | None:
        """After its time; None where it is over, or has time left."""
        if self.over or now < self.expires_at:
            return None
        return self._changed(now, status=JobStatus.EXPIRED)

    def replayed(self, now: float) -> Job:
        """To be worked once more, in as much time as before. Raises JobConflict unless it failed."""
        if self.status is not JobStatus.FAILED:
            raise JobConflict(f"Only a failed job can be replayed; this one is {self.status}.")
        began = self.created_at if self.replayed_at is None else self.replayed_at
        return self._changed(
            now,
            status=JobStatus.QUEUED,
            expires_at=now + self.expires_at - began,
            replayed_at=now,
            finished=0,
            done=0,
            failed=0,
            attempts={},
            replays=self.replays + 1,
            started_at=None,
            completed_at=None,
            error=None,
        )

    def notified(self, delivery: Delivery, now: float) -> Job:
        """After something has happened to its webhook."""
        return self._changed(now, webhook=delivery)

    def due(self) -> float:
        """When something is to be done about it: it expires, is told to its webhook, or is forgotten."""
        if self.completed_at is None:
            return self.expires_at
        forget = self.completed_at + self.retention
        if self.webhook is None or self.webhook.next_at is None:
            return forget
        return min(self.webhook.next_at, forget) if self.webhook.planned else self.webhook.next_at

    def outlived(self, now: float) -> bool:
        """Whether it is to be forgotten: its results are kept no longer for a webhook that fails."""
        if self.completed_at is None or now < self.completed_at + self.retention:
            return False
        return self.webhook is None or self.webhook.next_at is None or self.webhook.planned > 0

    def _changed(self, now: float, **values: object) -> Job:
        if values.get("status") in OVER:
            webhook = self.webhook and self.webhook.scheduled(now)
            values |= {"completed_at": now, "attempts": {}, "webhook": webhook}
        return self._replace(changed_at=now, revision=self.revision + 1, **values)  # type: ignore[arg-type]
