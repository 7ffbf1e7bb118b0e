"""Records jobs in a SQLite file, for one gateway process that needs nothing beside itself."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from domain.ports import Backlog, Created, Page
from infrastructure.job_record import decode, encode
from infrastructure.sqlite_database import Database

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from domain.job import Chunk, Job, JobStatus
    from domain.ports import Change, NewJob

FURTHEST = 10_000  # a position beyond this is told as this: it is counted whenever somebody asks
UPLOAD = 86_400.0  # seconds after which chunks without a job are forgotten

MIGRATIONS = (
    """
    CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- the order of acceptance
        id TEXT NOT NULL UNIQUE,
        status TEXT NOT NULL,
        bulk INTEGER NOT NULL,
        model TEXT NOT NULL,
        due REAL NOT NULL,
        revision INTEGER NOT NULL,
        record BLOB NOT NULL
    );
    -- Each of these is in order of seq where the columns are equal.
    CREATE INDEX jobs_by_status ON jobs (status);
    CREATE INDEX jobs_by_model ON jobs (model);
    CREATE INDEX jobs_by_model_and_status ON jobs (model, status);
    CREATE INDEX jobs_queued ON jobs (bulk) WHERE status = 'queued';
    CREATE INDEX jobs_by_due ON jobs (due);
    -- Two tables, so that outcomes are written without their instances being written again.
    CREATE TABLE instances (job TEXT NOT NULL, number INTEGER NOT NULL, body BLOB, UNIQUE (job, number));
    CREATE TABLE outcomes (job TEXT NOT NULL, number INTEGER NOT NULL, body BLOB, UNIQUE (job, number));
    CREATE TABLE uploads (job TEXT PRIMARY KEY, put_at REAL NOT NULL) WITHOUT ROWID;  -- not created yet
    CREATE INDEX uploads_by_age ON uploads (put_at);
    CREATE TABLE idempotency_keys (
        partition TEXT NOT NULL,
        key TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        job TEXT NOT NULL,
        PRIMARY KEY (partition, key)
    ) WITHOUT ROWID;
    CREATE INDEX idempotency_keys_by_job ON idempotency_keys (job);
    -- How many are queued, as it is asked once a second: counting a million would take 0.2 s.
    CREATE TABLE backlog (bulk INTEGER PRIMARY KEY, jobs INTEGER NOT NULL);
    INSERT INTO backlog VALUES (0, 0), (1, 0);
    CREATE TRIGGER job_created AFTER INSERT ON jobs WHEN new.status = 'queued'
        BEGIN UPDATE backlog SET jobs = jobs + 1 WHERE bulk = new.bulk; END;
    CREATE TRIGGER job_changed AFTER UPDATE OF status ON jobs
        WHEN (new.status = 'queued') != (old.status = 'queued')
        BEGIN UPDATE backlog SET jobs = jobs + iif(new.status = 'queued', 1, -1) WHERE bulk = new.bulk; END;
    CREATE TRIGGER job_deleted AFTER DELETE ON jobs WHEN old.status = 'queued'
        BEGIN UPDATE backlog SET jobs = jobs - 1 WHERE bulk = old.bulk; END;
    """,
    """
    -- A job with its only chunk, as many in one statement as are accepted together (SqliteJobs.create).
    CREATE VIEW accepted AS
        SELECT id, status, bulk, model, due, revision, record, NULL AS instances FROM jobs;
    CREATE TRIGGER job_accepted INSTEAD OF INSERT ON accepted BEGIN
        INSERT INTO jobs (id, status, bulk, model, due, revision, record)
            VALUES (new.id, new.status, new.bulk, new.model, new.due, new.revision, new.record)
            ON CONFLICT (id) DO NOTHING;
        INSERT OR REPLACE INTO instances (job, number, body) VALUES (new.id, 0, new.instances);
    END;
    """,
)

ACCEPT = "INSERT INTO accepted VALUES "
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
        if not jobs or any(new.idempotency is not None or new.instances is None for new in jobs):
            return await self._database.write(lambda database: [_create(database, new) for new in jobs])
        # The usual, in one statement, which is a transaction by itself: between two, the thread that writes
        # would have to wait for the interpreter, which the event loop is busy with.
        statement = ACCEPT + ", ".join([ACCEPTED] * len(jobs))
        values = [value for new in jobs for value in (*_row(new.job), new.instances)]
        await self._database.execute(statement, values)
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

    async def page(
        self,
        limit: int,
        *,
        before: int | None = None,
        status: JobStatus | None = None,
        model: str | None = None,
    ) -> Page:
        wanted = {"seq < ?": before, "status = ?": status, "model = ?": model}
        given = {condition: value for condition, value in wanted.items() if value is not None}
        where = " AND ".join(given) or "TRUE"
        query = f"SELECT seq, record FROM jobs WHERE {where} ORDER BY seq DESC LIMIT ?"  # noqa: S608  ours
        rows = await self._database.read(
            lambda database: database.execute(query, (*given.values(), limit + 1)).fetchall()
        )
        shown = rows[:limit]
        return Page([decode(record) for _, record in shown], shown[-1][0] if len(rows) > limit else None)

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
