"""What a file of jobs outlives, and whom it lets in: a killed process, a second one, other versions."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from application.job_records import JobRecords
from domain.job import Chunk, JobStatus
from domain.ports import Change, Created, IdempotencyKey, NewJob, Search
from infrastructure import sqlite_database
from infrastructure.sqlite_database import JobStoreError
from infrastructure.sqlite_job_schema import MIGRATIONS
from infrastructure.sqlite_jobs import SqliteJobs
from tests.integration.processes import ROOT
from tests.integration.recorded_jobs import begun, finished, job, new

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CALLERS = 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a folder that does not exist yet."""
    return tmp_path / "state" / "jobs.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteJobs]:
    async with aclosing(await SqliteJobs.open(path)) as opened:
        yield opened


async def refusal(path: Path) -> str:
    with pytest.raises(JobStoreError) as refused:
        await SqliteJobs.open(path)
    return str(refused.value)


# --- a process that is killed


async def _work_until_killed(path: Path) -> None:
    """Tell of what is accepted, and of what is done, and go on."""
    records = JobRecords(await SqliteJobs.open(path))

    async def caller(number: int) -> None:
        for i in range(1_000_000):
            queued = job(f"{number}-{i}")
            await records.create(NewJob(queued, b'["good"]'))
            print("created", queued.id, flush=True)  # noqa: T201
            await records.change(queued, lambda seen: Change(begun(seen)))
            await records.change(begun(queued), lambda seen: Change(finished(seen), 0, b"1\n"))
            print("done", queued.id, flush=True)  # noqa: T201

    await asyncio.gather(*map(caller, range(CALLERS)))


@pytest.fixture
def worker(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the database, and works."""
    command = [sys.executable, "-m", "tests.integration.test_sqlite_file", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_what_a_killed_process_had_accepted_is_there_afterwards(
    path: Path, worker: subprocess.Popen[str]
) -> None:
    assert worker.stdout is not None
    told = [worker.stdout.readline().split() for _ in range(1_500)]
    os.kill(worker.pid, signal.SIGKILL)
    told += [line.split() for line in worker.stdout if line.endswith("\n")]
    worker.wait()

    async with aclosing(await SqliteJobs.open(path)) as store:
        accepted = [job_id for what, job_id in told if what == "created"]
        done = [job_id for what, job_id in told if what == "done"]
        assert None not in await store.load(accepted)
        assert {each and each.status for each in await store.load(done)} == {JobStatus.SUCCEEDED}
        assert set(await store.outcomes([Chunk(each, 0) for each in done])) == {b"1\n"}
        assert set(await store.instances([Chunk(each, 0) for each in accepted])) == {b'["good"]'}
    _check(path)


def _check(path: Path) -> None:
    """Nothing is torn, and nothing half done."""
    database = sqlite3.connect(path)
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (lonely,) = database.execute(
            "SELECT (SELECT count(*) FROM jobs WHERE id NOT IN (SELECT job FROM instances))"
            " + (SELECT count(*) FROM outcomes WHERE job NOT IN (SELECT id FROM jobs))"
            " + abs((SELECT sum(jobs) FROM backlog) - (SELECT count(*) FROM jobs WHERE status = 'queued'))"
            " + (SELECT count(*) FROM jobs"
            "    WHERE (status = 'succeeded') != (id IN (SELECT job FROM outcomes)))"
        ).fetchone()
        assert lonely == 0
    finally:
        database.close()


async def test_a_second_process_is_refused_until_the_first_has_ended(
    path: Path, worker: subprocess.Popen[str]
) -> None:
    assert worker.stdout is not None
    worker.stdout.readline()

    said = await refusal(path)
    worker.kill()
    worker.wait()

    assert f"in use by another process (pid {worker.pid}): end that" in said
    await (await SqliteJobs.open(path)).aclose()


# --- opening


async def test_a_store_is_opened_once_and_again_after_it_was_closed(path: Path, store: SqliteJobs) -> None:
    await store.create([new("a")])
    assert "in use" in await refusal(path)
    await store.aclose()

    async with aclosing(await SqliteJobs.open(path)) as again:
        assert await again.load(["a"]) == [job("a")]
        await again.create([new("b")])
        assert [each.id for each in (await again.page(Search(9))).jobs] == ["b", "a"]


async def test_what_callers_send_is_for_this_user_alone(path: Path, store: SqliteJobs) -> None:
    await store.create([new("a")])

    modes = {each.name: each.stat().st_mode & 0o777 for each in (path.parent, *path.parent.iterdir())}
    assert modes == {
        "state": 0o700,
        "jobs.sqlite": 0o600,
        "jobs.sqlite-wal": 0o600,
        "jobs.sqlite-shm": 0o600,
        "jobs.sqlite.lock": 0o600,
    }


async def test_a_folder_that_cannot_be_written_is_said_so(path: Path) -> None:
    path.parent.mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # nobody; root may write everywhere
    try:
        said = await refusal(path)
    finally:
        os.seteuid(user)

    assert (str(path) in said, "Permission denied" in said, "set another path" in said) == (True,) * 3


async def test_a_path_that_leads_through_a_file_is_said_so(path: Path) -> None:
    path.parent.write_text("a file")

    assert "cannot be written" in await refusal(path)


async def test_what_an_older_version_has_written_is_read_and_gone_on_with(path: Path) -> None:
    database = await asyncio.to_thread(sqlite_database.Database.open, path, MIGRATIONS[:1])
    async with aclosing(SqliteJobs(database, time.time)) as older:
        await older.create([NewJob(job("old"), b'["good"]', IdempotencyKey("", "key", "f"))])

    async with aclosing(await SqliteJobs.open(path)) as newer:
        assert await newer.create([new("new")]) == [Created("new")]
        assert await newer.load(["old", "new"]) == [job("old"), job("new")]
        assert (await newer.backlog(bulk=False)).jobs == 2


def _garbage(path: Path) -> None:
    path.write_bytes(b"no database" * 1_000)


def _another_programs(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE jobs (theirs)")
    database.close()


def _newer(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA application_id = {sqlite_database.APPLICATION}")
    database.execute("PRAGMA user_version = 99")
    database.close()


def _folder(path: Path) -> None:
    path.mkdir()


def _contents(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (_garbage, "file is not a database): move it away"),
        (_another_programs, "another program's database"),
        (_newer, "newer version of this program (schema 99"),
        (_folder, "(Is a directory)"),
    ],
)
async def test_what_is_no_database_of_jobs_is_refused_and_left_alone(
    path: Path, made: Callable[[Path], None], said: str
) -> None:
    path.parent.mkdir()
    made(path)
    before = _contents(path)

    assert said in await refusal(path)
    assert said in await refusal(path)  # and not because it is still locked

    assert _contents(path) == before


if __name__ == "__main__":
    asyncio.run(_work_until_killed(Path(sys.argv[1])))
