"""Records jobs in a SQLite file, for one gateway process that needs nothing beside itself."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from domain.errors import QueueUnavailable
from domain.ports import Backlog, Condition, Created, Page
from infrastructure.job_record import decode, encode
from infrastructure.sqlite_database import Database
from infrastructure.sqlite_job_schema import MIGRATIONS

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from domain.job import Chunk, Job
    from domain.ports import Change, NewJob, Search

TOGETHER = 256  # jobs that are accepted by one statement, at most,
LARGE = 262_144  # with so many bytes, at most: SQLite keeps what a statement was told last
FURTHEST = 10_000  # a position beyond this is told as this: it is counted whenever somebody asks
UPLOAD = 86_400.0  # seconds after which chunks without a job are forgotten

ACCEPT = "INSERT INTO accepted SELECT * FROM (VALUES {}) WHERE column1 IS NOT NULL"
ACCEPTED = "(?, ?, ?, ?, ?, ?, ?, ?)"  # for each of them
FIND_KEY = "SELECT job, fingerprint FROM idempotency_keys WHERE partition = ? AND key = ?"
ADD_KEY = "INSERT INTO idempotency_keys (partition, key, fingerprint, job) VALUES (?, ?, ?, ?)"
ADD_JOB = """INSERT INTO jobs (id, status, bulk, model, due, revision, record) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO NOTHING"""
PUT_INSTANCES = "INSERT OR REPLACE INTO instances (job, number, body) VALUES (?, ?, ?)"
PUT_OUTCOMES = "INSERT OR REPLACE INTO outcomes (job, number, body) VALUES (?, ?, ?)"
PUT_UPLOAD = "INSERT OR REPLACE INTO uploads (job, put_at) VALUES (?, ?)"
END_UPLOAD = "DELETE FROM uploads WHERE job = ?"
OLD_UPLOADS = "SELECT job FROM uploads WHERE put_at < ? ORDER BY put_at LIMIT 100"
CHANGE = "UPDATE jobs SET status = ?, due = ?, revision = ?, record = ? WHERE id = ? AND revision = ?"
LOAD = "SELECT record FROM jobs WHERE id = ?"
INSTANCES = "SELECT body FROM instances WHERE job = ? AND number = ?"
OUTCOMES = "SELECT body FROM outcomes WHERE job = ? AND number = ?"
POSITION = """SELECT (SELECT count(*) FROM (
        SELECT 1 FROM jobs WHERE status = 'queued' AND bulk = this.bulk AND seq < this.seq LIMIT ?
    )) FROM jobs AS this WHERE id = ? AND status = 'queued'"""
WAITING = "SELECT jobs FROM backlog WHERE bulk = ?"
ALL_WAITING = "SELECT iif(bulk, 'bulk', 'interactive'), jobs FROM backlog"
OLDEST = "SELECT record FROM jobs WHERE status = 'queued' AND bulk = ? ORDER BY seq LIMIT 1"
DUE = "SELECT id FROM jobs WHERE due <= ? ORDER BY due LIMIT ?"
FORGET = (
    "DELETE FROM jobs WHERE id = ?",
    "DELETE FROM instances WHERE job = ?",
    "DELETE FROM outcomes WHERE job = ?",
    "DELETE FROM uploads WHERE job = ?",
    "DELETE FROM idempotency_keys WHERE job = ?",
)


class SqliteJobs:
    """A JobStore in one file, durable once a method has returned (`synchronous=FULL`).

    Every call is one transaction, however many it takes: who calls gathers. `position` counts to 10,000.
    An idempotency key lives until its job is deleted. Whoever opens it closes it.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock
        self._listeners: list[Callable[[Sequence[str] | None], None]] = []

    @classmethod
    async def open(cls, path: Path, *, clock: Callable[[], float] = time.time) -> SqliteJobs:
        """The store at `path`, made where it is missing, with its folder. Raises JobStoreError."""
        return cls(await asyncio.to_thread(Database.open, path, MIGRATIONS), clock)

    async def aclose(self) -> None:
        """Wait until all is done that was asked for, and let other processes have it."""
        await self._database.aclose()

    async def create(self, jobs: Sequence[NewJob]) -> Sequence[Created]:
        together = _acceptance(jobs)
        if together is None:
            return await self._database.write(lambda database: [_create(database, new) for new in jobs])
        # In one statement, which is a transaction by itself: between two, the thread that writes would have
        # to wait for the interpreter, which the event loop is busy with.
        await self._database.execute(*together)
        return [Created(new.job.id) for new in jobs]

    async def put_instances(self, chunks: Sequence[tuple[Chunk, bytes]]) -> None:
        now = self._clock()

        def put(database: sqlite3.Connection) -> None:
            database.executemany(PUT_UPLOAD, [(job, now) for job in {chunk.job for chunk, _ in chunks}])
            database.executemany(PUT_INSTANCES, [(*chunk, body) for chunk, body in chunks])

        await self._database.write(put)

    async def load(self, ids: Sequence[str]) -> Sequence[Job | None]:
        records = await self._bodies(LOAD, [(each,) for each in ids])
        return [None if record is None else decode(record) for record in records]

    async def instances(self, chunks: Sequence[Chunk]) -> Sequence[bytes | None]:
        return await self._bodies(INSTANCES, chunks)

    async def outcomes(self, chunks: Sequence[Chunk]) -> Sequence[bytes | None]:
        return await self._bodies(OUTCOMES, chunks)

    async def save(self, changes: Sequence[Change]) -> Sequence[bool]:
        done = await self._database.write(lambda database: [_save(database, change) for change in changes])
        self._tell([change.job.id for change, was_done in zip(changes, done, strict=True) if was_done])
        return done

    async def page(self, search: Search) -> Page:
        wanted = {"seq < ?": search.before, "status = ?": search.status, "model = ?": search.model}
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = " AND ".join(given) or "TRUE"
        query = f"SELECT seq, record FROM jobs WHERE {where} ORDER BY seq DESC LIMIT ?"  # noqa: S608  ours
        rows = await self._database.read(
            lambda database: database.execute(query, (*given.values(), search.limit + 1)).fetchall()
        )
        shown = rows[: search.limit]
        return Page(
            [decode(record) for _, record in shown], shown[-1][0] if len(rows) > search.limit else None
        )

    async def position(self, job: Job) -> int | None:
        row = await self._database.read(
            lambda database: database.execute(POSITION, (FURTHEST, job.id)).fetchone()
        )
        return None if row is None else int(row[0])

    async def backlog(self, *, bulk: bool) -> Backlog:
        def count(database: sqlite3.Connection) -> Backlog:
            (jobs,) = database.execute(WAITING, (bulk,)).fetchone()
            oldest = database.execute(OLDEST, (bulk,)).fetchone()
            return Backlog(jobs, None if oldest is None else decode(oldest[0]).created_at)

        return await self._database.read(count)

    async def condition(self) -> Condition:
        """As Component.condition; asked by writing, as a disk that is full, or hangs, may yet be read."""

        def count(database: sqlite3.Connection) -> dict[str, int]:
            database.execute(PUT_UPLOAD, ("", 0.0))
            database.execute(END_UPLOAD, ("",))
            return dict(database.execute(ALL_WAITING).fetchall())

        try:
            return Condition(counts=await self._database.write(count))
        except QueueUnavailable as error:
            return Condition(str(error))

    async def due(self, now: float, limit: int) -> Sequence[str]:
        def look(database: sqlite3.Connection) -> tuple[list[str], list[str]]:
            due = [each for (each,) in database.execute(DUE, (now, limit))]
            return due, [each for (each,) in database.execute(OLD_UPLOADS, (now - UPLOAD,))]

        due, abandoned = await self._database.read(look)
        if abandoned:
            await self._database.write(lambda database: _forget_uploads(database, now - UPLOAD))
        return due

    async def delete(self, ids: Sequence[str]) -> None:
        await self._database.write(lambda database: _forget(database, ids))
        self._tell(ids)

    def listen(self, heard: Callable[[Sequence[str] | None], None]) -> None:
        """As JobStore.listen; `heard` is called in the event loop. No other process can change anything."""
        self._listeners.append(heard)

    def _tell(self, ids: Sequence[str]) -> None:
        if ids:
            for heard in self._listeners:
                heard(ids)

    async def _bodies(self, query: str, keys: Sequence[tuple[object, ...]]) -> list[bytes | None]:
        def look(database: sqlite3.Connection) -> list[bytes | None]:
            rows = (database.execute(query, key).fetchone() for key in keys)
            return [None if row is None else row[0] for row in rows]

        return await self._database.read(look)


def _acceptance(jobs: Sequence[NewJob]) -> tuple[str, list[object]] | None:
    """One statement that accepts them all, with its values; None where they are not as usual.

    It has a power of two of rows, those that are too many without an id: of 256 statements, one for each
    number of jobs, Python keeps 128, in tens of megabytes, and has the others made anew.
    """
    if not 0 < len(jobs) <= TOGETHER or any(new.idempotency or new.instances is None for new in jobs):
        return None
    values = [value for new in jobs for value in (*_row(new.job), new.instances)]
    if sum(len(value) for value in values if isinstance(value, bytes)) > LARGE:
        return None
    rows = 1 << (len(jobs) - 1).bit_length()
    nothing = [None] * (ACCEPTED.count("?") * (rows - len(jobs)))
    return ACCEPT.format(", ".join([ACCEPTED] * rows)), values + nothing


def _create(database: sqlite3.Connection, new: NewJob) -> Created:
    job, key = new.job, new.idempotency
    if key is not None:
        used = database.execute(FIND_KEY, (key.partition, key.key)).fetchone()
        if used is not None:
            return Created(*used)
        database.execute(ADD_KEY, (*key, job.id))
    database.execute(ADD_JOB, _row(job))
    if new.instances is None:
        database.execute(END_UPLOAD, (job.id,))
    else:
        database.execute(PUT_INSTANCES, (job.id, 0, new.instances))
    return Created(job.id, None if key is None else key.fingerprint)


def _row(job: Job) -> tuple[object, ...]:
    return job.id, job.status, job.bulk, job.model.name, job.due(), job.revision, encode(job)


def _save(database: sqlite3.Connection, change: Change) -> bool:
    job = change.job
    row = (job.status, job.due(), job.revision, encode(job), job.id, job.revision - 1)
    done = database.execute(CHANGE, row).rowcount == 1
    if done and change.outcomes is not None:
        database.execute(PUT_OUTCOMES, (job.id, change.chunk, change.outcomes))
    return done


def _forget(database: sqlite3.Connection, ids: Sequence[str]) -> None:
    for statement in FORGET:
        database.executemany(statement, [(each,) for each in ids])


def _forget_uploads(database: sqlite3.Connection, before: float) -> None:
    """Those found now, as one that was abandoned a moment ago may have been created since."""
    _forget(database, [each for (each,) in database.execute(OLD_UPLOADS, (before,))])
