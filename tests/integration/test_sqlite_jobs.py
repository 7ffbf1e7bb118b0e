"""What only a file of one's own can do to us: be damaged, taken, closed, or full; and how much it holds."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from application.job_records import JobRecords
from bootstrap.gateway import assemble
from bootstrap.jobs import looked_after, open_shelf
from bootstrap.settings import JobsSettings, Settings
from domain.errors import QueueUnavailable
from domain.job import Chunk, JobStatus
from domain.ports import Created, IdempotencyKey, NewJob, Search
from infrastructure import sqlite_database
from infrastructure.memory_cache import MemoryCache
from infrastructure.sqlite_database import JobStoreError
from infrastructure.sqlite_jobs import FURTHEST, TOGETHER, SqliteJobs
from tests.integration.recorded_jobs import job, new

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from domain.prediction import Json

CALLERS = 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """In a folder that does not exist yet."""
    return tmp_path / "state" / "jobs.sqlite"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteJobs]:
    async with aclosing(await SqliteJobs.open(path)) as opened:
        yield opened


# --- trouble while it works


async def test_what_is_damaged_is_told_as_such_and_nothing_is_made_up(path: Path) -> None:
    async with aclosing(await SqliteJobs.open(path)) as store:
        await store.create([new(str(i)) for i in range(100)])
    _damage(path)

    with pytest.raises((JobStoreError, QueueUnavailable), match="malformed"):
        async with aclosing(await SqliteJobs.open(path)) as store:
            await store.load([str(i) for i in range(100)])
    with pytest.raises((JobStoreError, QueueUnavailable), match="malformed"):
        async with aclosing(await SqliteJobs.open(path)) as store:
            await store.create([new("another")])


def _damage(path: Path) -> None:
    """All but the first page, which says what is in the others."""
    sound = path.read_bytes()
    path.write_bytes(sound[:4_096] + b"\xff" * (len(sound) - 4_096))


async def test_a_full_disk_refuses_jobs_whole_and_loses_none(store: SqliteJobs) -> None:
    await store.create([new("before")])
    # The database may not grow any more; this is what SQLite does on a disk that is full.
    await store._database.write(lambda database: database.execute("PRAGMA max_page_count = 1").fetchone())

    with pytest.raises(QueueUnavailable, match="disk is full"):
        await store.create([new("small"), NewJob(job("large"), bytes(1_000_000))])

    assert [each and each.id for each in await store.load(["before", "small", "large"])] == [
        *("before", None, None)
    ]
    await store.delete(["before"])  # what makes room is still done
    assert await store.load(["before"]) == [None]


async def test_a_call_that_fails_in_the_middle_has_done_nothing(store: SqliteJobs) -> None:
    key = IdempotencyKey("", "key", "f")
    broken = job("b", parameters={"no JSON": object()})

    with pytest.raises(TypeError):
        await store.create([new("a"), NewJob(broken, b"[]", key)])

    assert await store.load(["a", "b"]) == [None, None]
    assert await store.create([new("c")._replace(idempotency=key)]) == [Created("c", "f")]


async def test_a_stranger_who_holds_the_database_makes_it_unavailable_in_bounded_time(
    path: Path, store: SqliteJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_database, "PATIENCE", 0.2)
    await store.create([new("a")])
    stranger = sqlite3.connect(path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")

    begun_at = time.monotonic()
    with pytest.raises(QueueUnavailable, match="did not answer in time"):
        await store.create([new("b")])
    assert time.monotonic() - begun_at < 2.0
    assert await store.load(["a"]) == [job("a")]  # who only looks does not wait
    stranger.close()

    monkeypatch.undo()
    await store.create([new("c")])
    assert await store.load(["c"]) == [job("c")]


async def test_a_closed_store_refuses(store: SqliteJobs) -> None:
    await store.aclose()

    with pytest.raises(QueueUnavailable, match="closed"):
        await store.create([new("a")])


async def test_what_was_asked_for_is_done_before_it_closes(path: Path, store: SqliteJobs) -> None:
    asked = [asyncio.ensure_future(store.create([new(str(i))])) for i in range(20)]
    await asyncio.sleep(0)
    await store.aclose()
    await asyncio.gather(*asked)

    async with aclosing(await SqliteJobs.open(path)) as again:
        assert len((await again.page(Search(99))).jobs) == 20


async def test_who_gives_up_waiting_disturbs_nobody(store: SqliteJobs) -> None:
    asked = [asyncio.ensure_future(store.create([new(str(i))])) for i in range(30)]
    await asyncio.sleep(0)
    for each in asked[::3]:
        each.cancel()

    answers = await asyncio.gather(*asked, return_exceptions=True)

    kept = [str(i) for i in range(30) if i % 3]
    assert [each for each in answers if not isinstance(each, BaseException)] == [[(i, None)] for i in kept]
    assert None not in await store.load(kept)


async def test_a_database_that_fails_at_the_start_leaves_nothing_running(path: Path) -> None:
    settings = Settings(jobs=JobsSettings(path=path))
    models = assemble(settings, [], MemoryCache(0))
    async with open_shelf(settings.jobs) as shelf:
        assert isinstance(shelf.records.store, SqliteJobs)
        await shelf.records.store.aclose()

        with pytest.raises(QueueUnavailable):
            async with looked_after(shelf, models.predictions, settings.jobs):
                pytest.fail("it is closed")

        assert asyncio.all_tasks() == {asyncio.current_task()}


# --- many


async def test_a_bundle_may_be_of_any_number_of_jobs(store: SqliteJobs) -> None:
    def as_elsewhere(database: sqlite3.Connection) -> None:
        database.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 32_766)  # SQLite's own; Debian's is higher

    await store._database.write(as_elsewhere)
    sizes = [1, 2, 3, TOGETHER - 1, TOGETHER, TOGETHER + 1, 5_000]
    for size in sizes:
        ids = [f"{size}-{i}" for i in range(size)]
        assert await store.create([new(each) for each in ids]) == [Created(each) for each in ids]
        assert await store.load(ids) == [job(each) for each in ids]

    assert (await store.backlog(bulk=False)).jobs == sum(sizes)
    assert [each.id for each in (await store.page(Search(2))).jobs] == ["5000-4999", "5000-4998"]


@pytest.mark.parametrize(("parameters", "instances"), [({}, b"x" * 200_000), ({"k": "x" * 200_000}, b"[]")])
async def test_what_jobs_were_accepted_with_is_not_kept_in_memory(
    store: SqliteJobs, parameters: dict[str, Json], instances: bytes
) -> None:
    await store.create([NewJob(job("first", parameters=parameters), instances)])
    before = _megabytes()

    for size in (*range(1, 21), TOGETHER):
        jobs = [job(f"{size}-{i}", parameters=parameters) for i in range(size)]
        await store.create([NewJob(each, instances) for each in jobs])

    assert _megabytes() - before < 40  # 93 were accepted, and 16 are the database's pages
    assert await store.instances([Chunk(f"{TOGETHER}-{TOGETHER - 1}", 0)]) == [instances]


def _megabytes() -> float:
    """What this process has of the machine's memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


async def test_a_position_is_counted_so_far_and_no_further(store: SqliteJobs) -> None:
    await store.create([new(str(i)) for i in range(FURTHEST + 2)])

    positions = [await store.position(job(str(FURTHEST + i))) for i in (-1, 0, 1)]

    assert positions == [FURTHEST - 1, FURTHEST, FURTHEST]


async def test_every_question_is_answered_from_an_index(path: Path, store: SqliteJobs) -> None:
    asked: list[str] = []
    await store._database.read(lambda database: database.set_trace_callback(asked.append))
    await store.create([new("a")])
    await asyncio.gather(store.load(["a"]), store.position(job("a")), store.backlog(bulk=False))
    await asyncio.gather(
        store.due(1e12, 9), store.instances([Chunk("a", 0)]), store.outcomes([Chunk("a", 0)])
    )
    for status in (None, JobStatus.QUEUED):
        for model in (None, "sentiment"):
            await store.page(Search(9, 5, status, model))

    await store._database.read(lambda database: database.set_trace_callback(None))
    database = sqlite3.connect(path)
    plans = [row[3] for each in asked for row in database.execute(f"EXPLAIN QUERY PLAN {each}")]
    database.close()
    assert [plan for plan in plans if "SCAN jobs" in plan or "TEMP B-TREE" in plan] == []
    for index in ("status", "model", "model_and_status", "due"):
        assert any(f" jobs_by_{index} (" in plan for plan in plans), index


async def test_those_who_come_together_are_committed_together(store: SqliteJobs) -> None:
    records, each = JobRecords(store), 50

    async def caller(number: int) -> None:
        for i in range(each):
            await records.create(new(f"{number}-{i}"))

    begun_at = time.monotonic()
    await asyncio.gather(*map(caller, range(CALLERS)))
    rate = CALLERS * each / (time.monotonic() - begun_at)

    print(f"{rate:,.0f} jobs a second from {CALLERS} callers")  # noqa: T201  a measurement, shown by -s
    assert (await store.backlog(bulk=False)).jobs == CALLERS * each


async def test_chunks_of_a_job_that_never_came_are_forgotten_within_a_day(tmp_path: Path) -> None:
    now = 1_000.0
    async with aclosing(await SqliteJobs.open(tmp_path / "jobs.sqlite", clock=lambda: now)) as store:
        await store.put_instances([(Chunk("lost", 0), b"[0]"), (Chunk("kept", 0), b"[1]")])
        await store.create([NewJob(job("kept"))])
        both = [Chunk("lost", 0), Chunk("kept", 0)]

        await store.due(now + 80_000, 10)
        assert await store.instances(both) == [b"[0]", b"[1]"]
        await store.due(now + 86_401, 10)
        assert await store.instances(both) == [None, b"[1]"]
