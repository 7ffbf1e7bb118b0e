"""What Redis does in one step for RedisJobs: scripts for many jobs at a time, and what they are told."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from domain.job import JobStatus
from domain.ports import Created
from infrastructure import job_record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from domain.job import Job
    from domain.ports import IdempotencyKey, NewJob
    from infrastructure.redis_batch import Command

Item: TypeAlias = tuple[bytes | str, ...]
"""What a script is told about one job: always as many arguments."""

AT_ONCE = 64  # jobs in one run of a script, which keeps everybody else waiting: about 1 ms
MOST_BYTES = 4_194_304  # of arguments in one run; a single job may have more


@dataclass(frozen=True, slots=True)
class Script:
    """Lua that Redis runs with a prefix and items as its arguments, and as a whole or, refused, not at all.

    For that, the first thing it writes is something that a full Redis refuses: past that none is.
    """

    source: str
    sha: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha1(self.source.encode(), usedforsecurity=False)  # the name Redis gives it
        object.__setattr__(self, "sha", digest.hexdigest())

    def remembered(self, prefix: bytes, items: Sequence[Item]) -> Command:
        """How to run it where Redis has not forgotten it, as it does when it is restarted."""
        return ("EVALSHA", self.sha, 0, prefix, *chain.from_iterable(items))

    def told(self, prefix: bytes, items: Sequence[Item]) -> Command:
        """How to run it anyway."""
        return ("EVAL", self.source, 0, prefix, *chain.from_iterable(items))


def pieces(items: Sequence[Item]) -> Iterator[list[Item]]:
    """`items` in order, as many together as one run may have."""
    piece: list[Item] = []
    size = 0
    for item in items:
        weight = sum(map(len, item))
        if piece and (len(piece) == AT_ONCE or size + weight > MOST_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += weight
    if piece:
        yield piece


# What HSETNX finds there was created by the same call, whose answer was lost: it stays.
# The field is that of the instances, or, where they have been put before, the key's once more.
CREATE = Script("""
local prefix, jobs = ARGV[1], (#ARGV - 1) / 9
local sequence = redis.call('INCRBY', prefix .. 'sequence', jobs) - jobs
local said = {}
for n = 1, jobs do
  local id, revision, index, due, record, field, instances, key, fingerprint =
    unpack(ARGV, n * 9 - 7, n * 9 + 1)
  local job, name = prefix .. 'j:' .. id, prefix .. 'k:' .. key
  said[n] = key ~= '' and redis.call('GET', name)
  if not said[n] and redis.call('HSETNX', job, 'sequence', sequence + n) == 1 then
    redis.call('HSET', job, 'revision', revision, 'index', index, 'key', key, 'record', record,
      field, instances)
    if field == 'key' then redis.call('PERSIST', job) end
    if key ~= '' then redis.call('SET', name, id .. '|' .. fingerprint) end
    redis.call('ZADD', prefix .. 'all', sequence + n, id)
    redis.call('ZADD', prefix .. index, sequence + n, id)
    redis.call('ZADD', prefix .. 'due', due, id)
  end
end
return said
""")

# What comes late, over a connection that was given up, does not end the life of a job.
PUT = Script("""
for n = 1, (#ARGV - 1) / 4 do
  local id, field, instances, seconds = unpack(ARGV, n * 4 - 2, n * 4 + 1)
  local job = ARGV[1] .. 'j:' .. id
  redis.call('HSET', job, field, instances)
  if redis.call('HEXISTS', job, 'record') == 0 then redis.call('EXPIRE', job, seconds) end
end
return {}
""")

# Whoever finds its own token was here before, and its answer was lost.
# The field is that of the outcomes, or, where there are none, the token's once more.
SAVE = Script("""
local prefix, said, changed = ARGV[1], {}, {}
for n = 1, (#ARGV - 1) / 9 do
  local id, before, revision, token, index, due, record, field, outcomes =
    unpack(ARGV, n * 9 - 7, n * 9 + 1)
  local job = prefix .. 'j:' .. id
  local was = redis.call('HMGET', job, 'revision', 'index', 'sequence', 'token')
  said[n] = (was[1] == revision and was[4] == token) and 1 or 0
  if was[1] == before then
    redis.call('HSET', job, 'revision', revision, 'index', index, 'token', token, 'record', record,
      field, outcomes)
    if was[2] ~= index then
      redis.call('ZREM', prefix .. was[2], id)
      redis.call('ZADD', prefix .. index, was[3], id)
    end
    redis.call('ZADD', prefix .. 'due', due, id)
    said[n] = 1
    changed[#changed + 1] = id
  end
end
if #changed > 0 then redis.call('PUBLISH', prefix .. 'changed', table.concat(changed, ',')) end
return said
""")

# It writes nothing that a full Redis refuses: forgetting makes room.
# Of a job that Redis has evicted only its id is left, who knows where: there it would be due for ever.
DELETE = Script("""
local prefix = ARGV[1]
local anywhere = {'all', 'due', 'queued:interactive', 'queued:bulk', 'running', 'succeeded', 'failed',
  'canceled', 'expired'}
for n = 2, #ARGV do
  local id = ARGV[n]
  local index, key = unpack(redis.call('HMGET', prefix .. 'j:' .. id, 'index', 'key'))
  redis.call('UNLINK', prefix .. 'j:' .. id)
  for _, name in ipairs(index and {'all', 'due', index} or anywhere) do
    redis.call('ZREM', prefix .. name, id)
  end
  if key and key ~= '' then redis.call('DEL', prefix .. 'k:' .. key) end
end
redis.call('PUBLISH', prefix .. 'changed', table.concat(ARGV, ',', 2))
return {}
""")

BACKLOG = Script("""
local index = ARGV[1] .. ARGV[2]
local first = redis.call('ZRANGE', index, 0, 0)[1]
local record = first and redis.call('HGET', ARGV[1] .. 'j:' .. first, 'record')
return {redis.call('ZCARD', index), record or false}
""")


def name_of(job_id: str) -> bytes:
    """Anybody may ask for anything, even for what is no text."""
    return job_id.encode(errors="surrogatepass")


def creation(job: Job, instances: bytes | None, idempotency: IdempotencyKey | None) -> Item:
    """What CREATE is told of a NewJob."""
    key, fingerprint = ("", "") if idempotency is None else (_digest(idempotency), idempotency.fingerprint)
    return (
        *(name_of(job.id), str(job.revision), index_of(job), repr(job.due()), job_record.encode(job)),
        *(("key", key) if instances is None else ("i0", instances)),
        key,
        fingerprint,
    )


def saving(token: str, job: Job, chunk: int, outcomes: bytes | None) -> Item:
    """What SAVE is told of a Change; `token` is like no other."""
    return (
        *(name_of(job.id), str(job.revision - 1), str(job.revision), token),
        *(index_of(job), repr(job.due()), job_record.encode(job)),
        *(("token", token) if outcomes is None else (f"o{chunk}", outcomes)),
    )


def _digest(key: IdempotencyKey) -> str:
    """A key's name in Redis: its length is the caller's choice, and what it says not our business."""
    return hashlib.sha256(repr((key.partition, key.key)).encode()).hexdigest()


def created_by(new: NewJob, said: bytes | None) -> Created:
    """What CREATE says: the job that was there before, if one was."""
    if said is None:
        return Created(new.job.id, None if new.idempotency is None else new.idempotency.fingerprint)
    job_id, _, fingerprint = said.decode().partition("|")
    return Created(job_id, fingerprint)


def queued_index(*, bulk: bool) -> str:
    """The sorted set of the queued jobs of one kind."""
    return "queued:bulk" if bulk else "queued:interactive"


def index_of(job: Job) -> str:
    """The sorted set of all that are in the state of `job`."""
    return queued_index(bulk=job.bulk) if job.status is JobStatus.QUEUED else job.status.value


def indices_of(status: JobStatus | None) -> list[bytes]:
    """The sorted sets that have all jobs of this status between them."""
    if status is None:
        return [b"all"]
    if status is JobStatus.QUEUED:
        return [queued_index(bulk=bulk).encode() for bulk in (False, True)]
    return [status.value.encode()]
