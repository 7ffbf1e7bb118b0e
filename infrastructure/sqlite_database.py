"""A SQLite file that is this process's alone: one thread writes, one reads, the event loop never waits."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from domain.errors import QueueUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

T = TypeVar("T")

PATIENCE = 10.0  # seconds that anything may take; a disk that hangs does for longer
BUSY = 5.0  # seconds to wait for a stranger's lock, as a backup may hold one
APPLICATION = 0x4D444A31  # "MDJ1": whose file this is (PRAGMA application_id)

SETTINGS = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;
PRAGMA wal_autocheckpoint = 4000;
PRAGMA journal_size_limit = 67108864;
PRAGMA cache_size = -16384;
PRAGMA temp_store = MEMORY;
"""
"""FULL: a commit is on the disk when it returns. 4,000 pages are 16 MB; the log shrinks to 64 MB, and up to
16 MB of pages are kept in memory for each connection."""


class JobStoreError(Exception):
    """The jobs' database cannot be opened; the message says why, and what to do."""


class Database:
    """The database at `path`; `open` makes what is missing, up to the last of `migrations`.

    Whoever opens it closes it. Until then no other process can open it, other than by SQLite itself.
    """

    def __init__(self, path: Path, lock: int, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self._path = path
        self._lock: int | None = lock
        self._writer = writer
        self._reader = reader
        self._writing = ThreadPoolExecutor(1, "jobs-write")
        self._reading = ThreadPoolExecutor(1, "jobs-read")

    @classmethod
    def open(cls, path: Path, migrations: Sequence[str]) -> Database:
        """Takes milliseconds, or as long as it takes to recover after a crash. Raises JobStoreError."""
        with contextlib.ExitStack() as undo:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = _locked(path)
                undo.callback(os.close, lock)
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # what callers send is for us alone
                connections = []
                for _ in range(2):
                    connections.append(_connect(path))
                    undo.callback(connections[-1].close)
                writer, reader = connections
                version = _checked(path, writer, len(migrations))
                writer.executescript(SETTINGS)
                _migrate(writer, migrations, version)
                reader.executescript(f"{SETTINGS} PRAGMA query_only = ON;")
            except OSError as error:
                raise JobStoreError(
                    f"The jobs' database {path} cannot be written ({error.strerror}): "
                    "make its folder writable for this user, or set another path."
                ) from error
            except sqlite3.Error as error:
                raise JobStoreError(
                    f"The jobs' database {path} cannot be used ({error}): move it away, with the files "
                    "beside it, to begin with an empty one; or restore it; or make its folder writable."
                ) from error
            undo.pop_all()
        return cls(path, lock, writer, reader)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` gives, once all it has done is on the disk; nothing is done where it raises.

        Raises QueueUnavailable; if that was for want of time, it may yet be done.
        """
        return await self._run(self._writing, partial(self._commit, work))

    async def execute(self, statement: str, values: Sequence[object]) -> None:
        """The same for a single statement."""
        await self._run(self._writing, partial(self._writer.execute, statement, values))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` gives; it sees all that was written before. Raises QueueUnavailable."""
        return await self._run(self._reading, partial(work, self._reader))

    async def aclose(self) -> None:
        """Wait until all is done that was asked for, and let others have it."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writing.shutdown()
        self._reading.shutdown()
        self._reader.close()
        self._writer.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def _run(self, thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            begun = asyncio.get_running_loop().run_in_executor(thread, work)
        except RuntimeError as error:  # it was shut down
            raise QueueUnavailable("The jobs' database is closed.") from error
        try:
            async with asyncio.timeout(PATIENCE):
                return await begun
        except TimeoutError as error:
            raise QueueUnavailable("The jobs' database did not answer in time.") from error
        except sqlite3.Error as error:
            raise QueueUnavailable(f"The jobs' database fails: {error}.") from error

    def _commit(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            result = work(self._writer)
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:  # a full disk has ended it already
                self._writer.execute("ROLLBACK")
            raise
        return result


def _locked(path: Path) -> int:
    """The open lock file beside `path`; it stays, as removing it would race with who opens it next."""
    lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode(errors="replace").strip() or "unknown"
            raise JobStoreError(
                f"The jobs' database {path} is in use by another process (pid {holder}): end that, or set "
                "another path. Several processes share jobs through Redis and RabbitMQ alone."
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        undo.pop_all()
    return lock


def _connect(path: Path) -> sqlite3.Connection:
    """Only one thread uses it at a time, though not always the same."""
    return sqlite3.connect(path, timeout=BUSY, isolation_level=None, check_same_thread=False)


def _checked(path: Path, connection: sqlite3.Connection, newest: int) -> int:
    """The version of the schema of what is there; nothing is changed before it is known to be ours."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION and tables:
        raise JobStoreError(f"{path} is another program's database: set another path for the jobs.")
    if version > newest:
        raise JobStoreError(
            f"The jobs' database {path} was written by a newer version of this program "
            f"(schema {version}, known are up to {newest}): use that one, or set another path."
        )
    return int(version)


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str], version: int) -> None:
    for number, script in enumerate(migrations[version:], version + 1):
        connection.executescript(
            f"BEGIN IMMEDIATE; {script}; PRAGMA application_id = {APPLICATION}; "
            f"PRAGMA user_version = {number}; COMMIT;"
        )
