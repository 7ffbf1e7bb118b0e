"""Jobs in a Redis that gateways and workers share."""

from __future__ import annotations

import secrets
from itertools import count
from typing import TYPE_CHECKING, Any, cast

from redis.exceptions import NoPermissionError, NoScriptError, OutOfMemoryError, ReadOnlyError, ResponseError

from domain.errors import QueueUnavailable
from domain.job import JobStatus
from domain.ports import Backlog, Condition, Page
from infrastructure import job_record
from infrastructure.redis_job_scripts import (
    BACKLOG,
    CREATE,
    DELETE,
    PUT,
    SAVE,
    created_by,
    creation,
    indices_of,
    name_of,
    pieces,
    queued_index,
    saving,
)
from infrastructure.redis_subscription import RedisSubscription

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from domain.job import Chunk, Job
    from domain.ports import Change, Created, NewJob, Search
    from infrastructure.redis_batch import Command, Replies
    from infrastructure.redis_connection import RedisConnection
    from infrastructure.redis_job_scripts import Item, Script

TRIES = 2
READ_AT_ONCE = 32  # chunks in one round trip; each may be large
DAY = "86400"  # seconds
SCANS, SCAN = 5, 200  # times records at most, to find those of a model for one page

REASONS = (
    (OutOfMemoryError, "Redis has no room for more jobs."),
    (ReadOnlyError, "This Redis is a replica, and takes no jobs."),
    (NoPermissionError, "Redis refuses this user what jobs need."),
)


class RedisJobs:
    """A JobStore in one Redis, with its replicas; not in a Redis Cluster, as its scripts touch many slots.

    It keeps what has returned as well as that Redis keeps its data: start it with `appendonly yes` and
    `maxmemory-policy noeviction`. With `appendfsync always` nothing is lost. With `everysec` a power cut
    costs up to two seconds, and `kill -9` nothing, unless the disk was still busy with the second before:
    then what came meanwhile. A failover costs what the replica had not got.

    Where an answer is lost, what was asked is asked once more; nothing is done twice by that, as the record
    knows whose change was the last. `redis` should have a timeout of seconds; whoever made it closes it,
    after this. All keys begin with `prefix`: a hash for each job (`j:`), with its chunks; sorted sets of
    ids by the order of acceptance (`all`, and one for each state) and by when they are `due`.
    """

    def __init__(self, redis: RedisConnection, *, prefix: bytes = b"dispatcher:") -> None:
        self._redis = redis
        self._prefix = prefix
        self._name = secrets.token_hex(8)
        self._saves = count()
        self._listeners: list[Callable[[Sequence[str] | None], None]] = []
        self._subscription = RedisSubscription(redis, prefix + b"changed", self._heard)

    async def aclose(self) -> None:
        """Stop listening."""
        await self._subscription.aclose()

    # --- writing

    async def create(self, jobs: Sequence[NewJob]) -> Sequence[Created]:
        said = await self._run(CREATE, [creation(*each) for each in jobs])
        return [created_by(new, each) for new, each in zip(jobs, said, strict=True)]

    async def put_instances(self, chunks: Sequence[tuple[Chunk, bytes]]) -> None:
        items = [(name_of(chunk.job), f"i{chunk.number}", instances, DAY) for chunk, instances in chunks]
        await self._run(PUT, items)

    async def save(self, changes: Sequence[Change]) -> Sequence[bool]:
        said = await self._run(SAVE, [saving(f"{self._name}{next(self._saves)}", *each) for each in changes])
        return [each == 1 for each in said]

    async def delete(self, ids: Sequence[str]) -> None:
        await self._run(DELETE, [(name_of(each),) for each in ids])

    # --- reading

    async def load(self, ids: Sequence[str]) -> Sequence[Job | None]:
        replies = await self._ask([("HGET", self._job(each), "record") for each in ids])
        records = cast("list[bytes | None]", replies)
        return [None if each is None else job_record.decode(each) for each in records]

    async def instances(self, chunks: Sequence[Chunk]) -> Sequence[bytes | None]:
        return await self._contents("i", chunks)

    async def outcomes(self, chunks: Sequence[Chunk]) -> Sequence[bytes | None]:
        return await self._contents("o", chunks)

    async def page(self, search: Search) -> Page:
        """As JobStore.page; it may be short, even empty, and lead on, where those of `model` are rare."""
        limit, before, status, model = search
        found: list[tuple[int, Job]] = []
        size = limit + 1 if model is None else max(limit + 1, SCAN)
        for _ in range(SCANS):
            entries = await self._entries(status, before, size)
            jobs = await self.load([job_id for _, job_id in entries])
            found += (
                (sequence, job)
                for (sequence, _), job in zip(entries, jobs, strict=True)
                if job is not None and status in {None, job.status} and model in {None, job.model.name}
            )
            if len(found) > limit:
                return Page([job for _, job in found[:limit]], found[limit - 1][0])
            if len(entries) < size:
                return Page([job for _, job in found], None)
            before = entries[-1][0]
        return Page([job for _, job in found], before)

    async def position(self, job: Job) -> int | None:
        queued = indices_of(JobStatus.QUEUED)
        ranks = await self._ask([("ZRANK", self._prefix + each, name_of(job.id)) for each in queued])
        return next((rank for rank in cast("list[int | None]", ranks) if rank is not None), None)

    async def backlog(self, *, bulk: bool) -> Backlog:
        jobs, first = cast("tuple[int, bytes | None]", await self._run(BACKLOG, [(queued_index(bulk=bulk),)]))
        return Backlog(jobs, None if first is None else job_record.decode(first).created_at)

    async def condition(self) -> Condition:
        """As Component.condition; asked to write, as a Redis that is full, or a replica, may yet be read."""
        found = await self._redis.condition()
        if found.problem is not None:
            return found
        try:
            await self._ask([("ZADD", self._prefix + b"due", "XX", 0, b"")])  # no member: it changes nothing
            interactive, bulk = [(await self.backlog(bulk=each)).jobs for each in (False, True)]
        except QueueUnavailable as error:
            return Condition(str(error))
        return Condition(counts={"interactive": interactive, "bulk": bulk})

    async def due(self, now: float, limit: int) -> Sequence[str]:
        command = ("ZRANGEBYSCORE", self._prefix + b"due", "-inf", repr(now), "LIMIT", 0, limit)
        (ids,) = await self._ask([command])
        return [each.decode() for each in cast("list[bytes]", ids)]

    async def _contents(self, kind: str, chunks: Sequence[Chunk]) -> list[bytes | None]:
        contents: Replies = []
        for start in range(0, len(chunks), READ_AT_ONCE):
            some = chunks[start : start + READ_AT_ONCE]
            contents += await self._ask([("HGET", self._job(job), f"{kind}{n}") for job, n in some])
        return cast("list[bytes | None]", contents)

    async def _entries(
        self, status: JobStatus | None, before: int | None, size: int
    ) -> list[tuple[int, str]]:
        """Up to `size` sequences and ids, the newest first."""
        newest = "+inf" if before is None else f"({before}"
        commands: list[Command] = [
            ("ZREVRANGEBYSCORE", self._prefix + each, newest, "-inf", "WITHSCORES", "LIMIT", 0, size)
            for each in indices_of(status)
        ]
        entries = []
        for reply in await self._ask(commands):
            said = cast("list[bytes]", reply)
            entries += [(int(n), each.decode()) for each, n in zip(said[::2], said[1::2], strict=True)]
        return sorted(entries, reverse=True)[:size]

    # --- hints

    def listen(self, heard: Callable[[Sequence[str] | None], None]) -> None:
        """As JobStore.listen; outside of an event loop, it begins with the first call inside of one."""
        self._listeners.append(heard)
        self._subscription.start()

    def _heard(self, said: bytes | None) -> None:
        ids = None if said is None else said.decode(errors="replace").split(",")
        for heard in self._listeners:
            heard(ids)

    # --- Redis

    def _job(self, job_id: str) -> bytes:
        return self._prefix + b"j:" + name_of(job_id)

    async def _run(self, script: Script, items: Sequence[Item]) -> list[Any]:
        """What `script` says of each item."""
        said: list[Any] = []
        for some in pieces(items):
            (reply,) = await self._replies([script.remembered(self._prefix, some)])
            if isinstance(reply, NoScriptError):
                (reply,) = await self._ask([script.told(self._prefix, some)])
            said += cast("list[Any]", _checked(reply))
        return said

    async def _ask(self, commands: Sequence[Command]) -> Replies:
        return [_checked(each) for each in await self._replies(commands)]

    async def _replies(self, commands: Sequence[Command]) -> Replies:
        if self._listeners:
            self._subscription.start()
        for _ in range(TRIES):
            if not await self._redis.connect():
                break
            replies = await self._redis.call(commands)
            if replies is not None:
                return replies
        raise QueueUnavailable("Redis, which keeps the jobs, did not answer.")


def _checked(reply: object) -> object:
    if not isinstance(reply, ResponseError):
        return reply
    # In our own words: Redis's may quote what it was told.
    reason = next((said for kind, said in REASONS if isinstance(reply, kind)), None)
    raise QueueUnavailable(reason or f"Redis refuses jobs now: {type(reply).__name__}.") from None
