"""Stand-ins for the store and the queue of jobs, in memory; as real ones, they let others run meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from domain.errors import QueueUnavailable
from domain.job import Chunk, Job, JobStatus
from domain.ports import Backlog, Change, Created, IdempotencyKey, NewJob, Page, Search
from domain.webhook import Attempt, Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass
class Trouble:
    """What an outside thing does to its callers: `seconds` pass first; `down`, it refuses.

    `answers_lost`: it does what it is asked, and says that it did not, as when a connection breaks.
    """

    seconds: float = 0.0
    down: bool = False
    answers_lost: bool = False

    async def before(self) -> None:
        await asyncio.sleep(self.seconds)
        if self.down:
            raise QueueUnavailable

    def after(self) -> None:
        if self.answers_lost:
            raise QueueUnavailable


@dataclass
class FakeJobStore:
    """A JobStore whose contents are there to be looked at; `deaf`, its hints are lost."""

    trouble: Trouble = field(default_factory=Trouble)
    deaf: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)  # in the order of their acceptance
    numbers: dict[str, int] = field(default_factory=dict)
    inputs: dict[Chunk, bytes] = field(default_factory=dict)
    results: dict[Chunk, bytes] = field(default_factory=dict)
    keys: dict[tuple[str, str], Created] = field(default_factory=dict)
    listeners: list[Callable[[Sequence[str] | None], None]] = field(default_factory=list)
    calls: list[tuple[str, int]] = field(default_factory=list)  # which method, with how many

    async def create(self, jobs: Sequence[NewJob]) -> list[Created]:
        await self._called("create", len(jobs))
        created = [self._create(*new) for new in jobs]
        self.trouble.after()
        return created

    async def put_instances(self, chunks: Sequence[tuple[Chunk, bytes]]) -> None:
        await self._called("put_instances", len(chunks))
        self.inputs.update(dict(chunks))
        self.trouble.after()

    async def load(self, ids: Sequence[str]) -> list[Job | None]:
        await self._called("load", len(ids))
        return [self.jobs.get(each) for each in ids]

    async def instances(self, chunks: Sequence[Chunk]) -> list[bytes | None]:
        await self._called("instances", len(chunks))
        return [self.inputs.get(each) for each in chunks]

    async def outcomes(self, chunks: Sequence[Chunk]) -> list[bytes | None]:
        await self._called("outcomes", len(chunks))
        return [self.results.get(each) for each in chunks]

    async def save(self, changes: Sequence[Change]) -> list[bool]:
        await self._called("save", len(changes))
        saved = [self._save(each) for each in changes]
        self._tell([each.job.id for each, done in zip(changes, saved, strict=True) if done])
        self.trouble.after()
        return saved

    async def page(self, search: Search) -> Page:
        limit, before, status, model = search
        await self._called("page", limit)
        found = [
            job
            for job in reversed(self.jobs.values())
            if (before is None or self.numbers[job.id] < before)
            and (status is None or job.status is status)
            and (model is None or job.model.name == model)
        ]
        more = self.numbers[found[limit - 1].id] if len(found) > limit else None
        return Page(found[:limit], more)

    async def position(self, job: Job) -> int | None:
        await self._called("position", 1)
        recorded = self.jobs.get(job.id)
        if recorded is None or recorded.status is not JobStatus.QUEUED:
            return None
        return [each.id for each in self._queued(bulk=recorded.bulk)].index(job.id)

    async def backlog(self, *, bulk: bool) -> Backlog:
        await self._called("backlog", 1)
        queued = self._queued(bulk=bulk)
        return Backlog(len(queued), min((each.created_at for each in queued), default=None))

    async def due(self, now: float, limit: int) -> list[str]:
        await self._called("due", limit)
        due = sorted((job for job in self.jobs.values() if job.due() <= now), key=Job.due)
        return [job.id for job in due[:limit]]

    async def delete(self, ids: Sequence[str]) -> None:
        await self._called("delete", len(ids))
        gone = set(ids)
        for kept in (self.inputs, self.results):
            for chunk in [each for each in kept if each.job in gone]:
                del kept[chunk]
        for key in [key for key, created in self.keys.items() if created.id in gone]:
            del self.keys[key]
        for job_id in gone & self.jobs.keys():
            del self.jobs[job_id]
        self._tell(list(ids))
        self.trouble.after()

    def listen(self, heard: Callable[[Sequence[str] | None], None]) -> None:
        self.listeners.append(heard)

    def hints_were_lost(self) -> None:
        """What a store says when it is connected again."""
        for heard in self.listeners:
            heard(None)

    async def _called(self, method: str, count: int) -> None:
        self.calls.append((method, count))
        await self.trouble.before()

    def _create(self, job: Job, instances: bytes | None, idempotency: IdempotencyKey | None) -> Created:
        created = Created(job.id)
        if idempotency is not None:
            name = (idempotency.partition, idempotency.key)
            if name in self.keys:
                return self.keys[name]
            created = self.keys[name] = Created(job.id, idempotency.fingerprint)
        self.jobs[job.id] = job
        self.numbers[job.id] = len(self.numbers) + 1
        if instances is not None:
            self.inputs[Chunk(job.id, 0)] = instances
        return created

    def _save(self, change: Change) -> bool:
        recorded = self.jobs.get(change.job.id)
        if recorded is None or recorded.revision != change.job.revision - 1:
            return False
        self.jobs[change.job.id] = change.job
        if change.outcomes is not None:
            self.results[Chunk(change.job.id, change.chunk)] = change.outcomes
        return True

    def _queued(self, *, bulk: bool) -> list[Job]:
        return [job for job in self.jobs.values() if job.status is JobStatus.QUEUED and job.bulk is bulk]

    def _tell(self, ids: Sequence[str]) -> None:
        if ids and not self.deaf:
            for heard in self.listeners:
                heard(ids)


@dataclass
class FakeJobQueue:
    """A JobQueue that keeps what was published; `deliver` takes it out. It may not know if it is empty."""

    trouble: Trouble = field(default_factory=Trouble)
    knows: bool = True
    published: list[Chunk] = field(default_factory=list)
    publishes: list[int] = field(default_factory=list)  # how many chunks each time
    waiting: dict[bool, deque[Chunk]] = field(default_factory=lambda: {False: deque(), True: deque()})

    async def publish(self, chunks: Sequence[Chunk], *, bulk: bool) -> None:
        await self.trouble.before()
        self.published.extend(chunks)
        self.publishes.append(len(chunks))
        self.waiting[bulk].extend(chunks)
        self.trouble.after()

    async def is_empty(self, *, bulk: bool) -> bool | None:
        await asyncio.sleep(self.trouble.seconds)
        return not self.waiting[bulk] if self.knows and not self.trouble.down else None

    def deliver(self, *, bulk: bool = False) -> list[Chunk]:
        """All that wait; they are not in the queue any more."""
        chunks = list(self.waiting[bulk])
        self.waiting[bulk].clear()
        return chunks


@dataclass
class FakeWebhooks:
    """A WebhookSender. The host h answers `status[h]` (else 200; None: not at all) after `seconds[h]`."""

    status: dict[str, int | None] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    called: list[tuple[str, str, float]] = field(default_factory=list)  # host, message id, when
    bodies: list[bytes] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    async def __call__(self, url: str, message_id: str, body: bytes, now: float) -> Attempt:
        host = Delivery(url).host
        self.called.append((host, message_id, now))
        self.bodies.append(body)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds.get(host, 0.0))
        finally:
            self.at_once -= 1
        status = self.status.get(host, 200)
        return Attempt(now, status, None if status == 200 else "It went wrong.")
