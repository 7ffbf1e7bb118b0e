"""What every JobStore does, in the words of the port."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, aclosing
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

from domain.job import Chunk, Failure, Job, JobStatus
from domain.ports import Change, Created, IdempotencyKey, JobStore, NewJob, Search
from domain.prediction import ModelRef
from domain.webhook import Attempt, Delivery
from infrastructure.redis_connection import RedisConnection
from infrastructure.sqlite_jobs import SqliteJobs
from tests.integration.recorded_jobs import NOW, SENTIMENT, begun, finished, job, new, some
from tests.integration.test_redis import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.integration.redis_server import RunningRedis


@pytest.fixture(params=["sqlite", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[JobStore]:
    """An empty one of each kind; Redis is not started for the others."""
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            opened = await SqliteJobs.open(tmp_path / "jobs.sqlite", clock=lambda: NOW)
            yield await stack.enter_async_context(aclosing(opened))
        else:
            redis: RunningRedis = request.getfixturevalue("own_redis")
            connection = RedisConnection(redis.url, observe=list[Any]().append, timeout=10.0)
            await stack.enter_async_context(aclosing(connection))
            await connection.connect()
            jobs = import_module("infrastructure.redis_jobs").RedisJobs(connection)
            yield await stack.enter_async_context(aclosing(jobs))


async def created(store: JobStore, job_id: str, **fields: Any) -> Job:
    """A queued job that `store` has."""
    await store.create([new(job_id, **fields)])
    return job(job_id, **fields)


async def ended(store: JobStore, job_id: str, *, failed: int = 0, **fields: Any) -> Job:
    """One that is over, with the outcome b"1"."""
    running = begun(await created(store, job_id, **fields))
    over = finished(running, failed)
    assert await store.save([Change(running), Change(over, 0, b"1\n")]) == [True, True]
    return over


# --- create


async def test_what_was_created_is_loaded_in_the_order_asked_for(store: JobStore) -> None:
    answers = await store.create([new("a"), new("b", bulk=True)])

    assert answers == [Created("a"), Created("b")]
    assert await store.load(["b", "unknown", "a", "b"]) == [
        *(job("b", bulk=True), None, job("a"), job("b", bulk=True))
    ]
    assert await store.instances([Chunk("b", 0), Chunk("a", 1), Chunk("x", 0)]) == [b'["good"]', None, None]
    assert await store.outcomes([Chunk("a", 0)]) == [None]


async def test_jobs_with_and_without_a_key_or_instances_are_created_together(store: JobStore) -> None:
    keyed = NewJob(job("keyed"), b'["keyed"]', IdempotencyKey("", "key", "f"))
    await store.put_instances([(Chunk("put", 0), b'["put"]')])

    answers = await store.create([new("plain"), keyed, NewJob(job("put"))])

    assert answers == [Created("plain"), Created("keyed", "f"), Created("put")]
    assert await store.load(["plain", "keyed", "put"]) == [job("plain"), job("keyed"), job("put")]
    chunks = [Chunk("plain", 0), Chunk("keyed", 0), Chunk("put", 0)]
    assert await store.instances(chunks) == [b'["good"]', b'["keyed"]', b'["put"]']


async def test_a_job_that_is_created_twice_is_as_it_was(store: JobStore) -> None:
    running = begun(await created(store, "a"))
    assert await store.save([Change(running)]) == [True]

    assert await store.create([new("a"), new("b")]) == [Created("a"), Created("b")]

    assert await store.load(["a", "b"]) == [running, job("b")]


async def test_nothing_is_done_for_nothing(store: JobStore) -> None:
    heard: list[Any] = []
    store.listen(heard.append)
    await store.put_instances([])
    await store.delete([])

    assert [await store.create([]), await store.load([]), await store.save([])] == [[], [], []]
    assert [await store.instances([]), await store.outcomes([]), heard] == [[], [], []]


RICH = job(
    "rich",
    model=ModelRef("sentiment", "1.0"),
    total=2_000_000,
    chunk_size=100,
    parameters={"k": [1, 1.0, True, None, "ü\x00\ud800"], "n": {"0": -1.5e-300}},
    partition="tenant \N{SNOWMAN}",
    bulk=True,
    status=JobStatus.RUNNING,
    finished=(1 << 19_999) | (1 << 5_000) | 1,
    done=298,
    failed=2,
    attempts={3: 1, 12_345: 7},
    most_attempts=7,
    replays=2,
    answered_by="1.0",
    changed_at=NOW + 0.1 + 0.2,
    started_at=NOW + 1e-6,
    completed_at=NOW + 2,
    error=Failure("input-rejected-by-model", 'said: "no"\n', 422),
    webhook=Delivery(
        "https://example.com/hook?a=b",
        (Attempt(NOW, 500, "not accepted"), Attempt(NOW + 5)),
        2,
        NOW + 9,
        delivered=True,
    ),
    revision=41,
)


@pytest.mark.parametrize("record", [job("plain"), RICH], ids=["plain", "rich"])
async def test_a_record_comes_back_as_it_was(store: JobStore, record: Job) -> None:
    await store.create([NewJob(record, b"[]")])

    loaded = some((await store.load([record.id]))[0])

    assert loaded == record
    assert repr(loaded.parameters) == repr(record.parameters)  # equality does not tell 1 from True


async def test_a_thousand_at_once_are_all_there_in_order(store: JobStore) -> None:
    ids = [f"job-{i}" for i in range(1_000)]
    tens = [ids[start : start + 10] for start in range(0, 1_000, 10)]
    await asyncio.gather(*(store.create([new(each) for each in ten]) for ten in tens))

    assert [each and each.id for each in await store.load(ids)] == ids
    assert (await store.backlog(bulk=False)).jobs == 1_000


async def test_an_idempotency_key_names_the_job_it_was_first_used_for(store: JobStore) -> None:
    key = IdempotencyKey("tenant", "key", "f1")
    first = await store.create([new("a")._replace(idempotency=key)])
    again = await store.create(
        [new("b")._replace(idempotency=key), new("c")._replace(idempotency=key._replace(fingerprint="f2"))]
    )

    assert (first, again) == ([Created("a", "f1")], [Created("a", "f1"), Created("a", "f1")])
    assert await store.load(["b", "c"]) == [None, None]
    assert await store.instances([Chunk("b", 0)]) == [None]
    assert (await store.backlog(bulk=False)).jobs == 1


async def test_an_idempotency_key_used_twice_in_one_call_is_one_job(store: JobStore) -> None:
    twins = [new(each)._replace(idempotency=IdempotencyKey("", "key", each)) for each in "ab"]

    assert await store.create([*twins, new("c")]) == [Created("a", "a"), Created("a", "a"), Created("c")]


async def test_an_idempotency_key_is_its_partitions_own(store: JobStore) -> None:
    names = [("x", "z"), ("y", "z"), ("x", "yz"), ("xy", "z"), ("", "xyz")]
    keys = [IdempotencyKey(partition, key, "f") for partition, key in names]

    for job_id, key in zip("abcde", keys, strict=True):
        assert await store.create([new(job_id)._replace(idempotency=key)]) == [Created(job_id, "f")]


async def test_an_idempotency_key_is_free_again_once_its_job_is_forgotten(store: JobStore) -> None:
    key = IdempotencyKey("", "key", "f")
    await store.create([new("a")._replace(idempotency=key)])
    await ended(store, "other")
    await store.delete(["a"])

    assert await store.create([new("b")._replace(idempotency=key)]) == [Created("b", "f")]


async def test_an_idempotency_key_outlives_the_changes_of_its_job(store: JobStore) -> None:
    key = IdempotencyKey("", "key", "f")
    await store.create([new("a")._replace(idempotency=key)])
    await store.save([Change(job("a").canceled(NOW))])

    assert await store.create([new("b")._replace(idempotency=key)]) == [Created("a", "f")]


# --- chunks


async def test_chunks_are_put_before_their_job(store: JobStore) -> None:
    await store.put_instances([(Chunk("a", 0), b"[0]"), (Chunk("a", 1), b"[1]")])
    await store.put_instances([(Chunk("a", 2), b"[2]")])
    await store.create([NewJob(job("a", total=1_100))])

    chunks = [Chunk("a", i) for i in (2, 0, 1, 3)]
    assert await store.instances(chunks) == [b"[2]", b"[0]", b"[1]", None]


async def test_a_chunk_may_be_large_and_any_bytes(store: JobStore) -> None:
    large = bytes(range(256)) * 20_000  # 5 MB
    await store.put_instances([(Chunk("a", 0), large), (Chunk("a", 1), b"")])
    await store.create([NewJob(job("a", total=501)), NewJob(job("b"), large)])
    running = begun(job("b"))
    await store.save([Change(running), Change(finished(running), 0, large)])

    chunks = [Chunk("a", 0), Chunk("b", 0), Chunk("a", 1)]
    assert await store.instances(chunks) == [large, large, b""]
    assert await store.outcomes(chunks) == [None, large, None]


# --- save


async def test_of_two_who_change_the_same_revision_one_does(store: JobStore) -> None:
    queued = await created(store, "a")
    rivals = [queued.canceled(NOW), begun(queued), queued.notified(Delivery("http://x"), NOW)]

    done = await asyncio.gather(*(store.save([Change(each)]) for each in rivals))

    assert sorted(each for (each,) in done) == [False, False, True]
    assert await store.load(["a"]) == [rivals[done.index([True])]]


async def test_a_stale_change_holds_up_none_of_the_others(store: JobStore) -> None:
    a, b = await created(store, "a"), await created(store, "b")
    await store.save([Change(begun(a))])

    done = await store.save([Change(a.canceled(NOW)), Change(begun(b)), Change(begun(job("unknown")))])

    assert done == [False, True, False]
    assert await store.load(["a", "b", "unknown"]) == [begun(a), begun(b), None]


async def test_changes_in_one_call_are_made_one_after_the_other(store: JobStore) -> None:
    running = begun(await created(store, "a"))
    over = finished(running)

    assert await store.save([Change(over), Change(running), Change(over), Change(over)]) == [
        *(False, True, True, False)
    ]
    assert await store.load(["a"]) == [over]


async def test_outcomes_are_written_only_with_the_change_they_belong_to(store: JobStore) -> None:
    over = await ended(store, "a", total=1_000)
    twin = over._replace(done=7)

    stale = [Change(twin, 0, b"2\n"), Change(begun(job("unknown")), 0, b"3\n")]
    assert await store.save(stale) == [False, False]

    chunks = [Chunk("a", 0), Chunk("a", 1), Chunk("unknown", 0)]
    assert await store.outcomes(chunks) == [b"1\n", None, None]


async def test_other_changes_leave_outcomes_alone(store: JobStore) -> None:
    over = await ended(store, "a")
    await store.save([Change(over.notified(Delivery("http://x"), NOW))])

    assert await store.outcomes([Chunk("a", 0)]) == [b"1\n"]
    assert await store.instances([Chunk("a", 0)]) == [b'["good"]']


async def test_a_replayed_job_gets_new_outcomes(store: JobStore) -> None:
    queued = (await ended(store, "a", failed=1)).replayed(NOW + 3)
    running = begun(queued)

    changes = [Change(queued), Change(running), Change(finished(running), 0, b"2\n")]
    assert await store.save(changes) == [True, True, True]
    assert await store.outcomes([Chunk("a", 0)]) == [b"2\n"]


# --- looking


async def ids_of_pages(store: JobStore, limit: int, **wanted: Any) -> list[list[str]]:
    pages, before = [], None
    while True:
        page = await store.page(Search(limit, before, **wanted))
        pages.append([each.id for each in page.jobs])
        before = page.next
        if before is None:
            return pages


async def test_pages_show_the_newest_first_and_lead_on(store: JobStore) -> None:
    assert await ids_of_pages(store, 2) == [[]]
    for job_id in "cabde":
        await created(store, job_id)
    await store.save([Change(begun(job("a")))])

    assert await ids_of_pages(store, 2) == [["e", "d"], ["b", "a"], ["c"]]
    assert await ids_of_pages(store, 5) == [["e", "d", "b", "a", "c"]]
    assert (await store.page(Search(5))).jobs[3] == begun(job("a"))


async def test_what_comes_or_goes_meanwhile_does_not_shift_the_next_page(store: JobStore) -> None:
    for job_id in "abcd":
        await created(store, job_id)
    first = await store.page(Search(2))
    await created(store, "e")
    await store.delete(["d"])

    second = await store.page(Search(2, first.next))

    assert [[each.id for each in page.jobs] for page in (first, second)] == [["d", "c"], ["b", "a"]]


async def test_pages_are_of_one_status_and_model_where_these_are_given(store: JobStore) -> None:
    other = ModelRef("other", "2")
    for job_id in "abcdef":
        await created(store, job_id, model=other if job_id in "abc" else SENTIMENT)
    for job_id in "be":
        await store.save([Change(job(job_id, model=other if job_id == "b" else SENTIMENT).canceled(NOW))])

    assert await ids_of_pages(store, 2, status=JobStatus.QUEUED) == [["f", "d"], ["c", "a"]]
    assert await ids_of_pages(store, 1, status=JobStatus.CANCELED) == [["e"], ["b"]]
    assert await ids_of_pages(store, 2, model="other") == [["c", "b"], ["a"]]
    assert await ids_of_pages(store, 2, model="other", status=JobStatus.QUEUED) == [["c", "a"]]
    assert await ids_of_pages(store, 2, model="unknown") == [[]]
    assert await ids_of_pages(store, 2, status=JobStatus.FAILED) == [[]]


async def test_a_position_counts_the_queued_jobs_of_its_kind_before_it(store: JobStore) -> None:
    jobs = [await created(store, job_id, bulk=job_id == "b") for job_id in "abcd"]
    assert [await store.position(each) for each in jobs] == [0, 0, 1, 2]

    await store.save([Change(begun(jobs[0]))])
    await store.delete(["c"])

    assert [await store.position(each) for each in (*jobs, job("x"))] == [None, 0, None, 0, None]


async def test_a_replayed_job_is_queued_again(store: JobStore) -> None:
    queued = (await ended(store, "a", failed=1)).replayed(NOW + 3)
    assert await store.position(queued) is None
    await store.save([Change(queued)])

    assert await store.position(queued) == 0
    assert await store.backlog(bulk=False) == (1, NOW)


async def test_the_backlog_is_of_one_kind_and_knows_its_oldest(store: JobStore) -> None:
    for i, job_id in enumerate("abcd"):
        await created(store, job_id, bulk=job_id == "d", created_at=NOW + i)
    assert await store.backlog(bulk=False) == (3, NOW)
    assert await store.backlog(bulk=True) == (1, NOW + 3)

    await store.save([Change(begun(job("a")))])
    await store.delete(["d"])

    assert await store.backlog(bulk=False) == (2, NOW + 1)
    assert await store.backlog(bulk=True) == (0, None)


# --- what is due


async def test_what_is_due_longest_comes_first_and_no_more_than_asked_for(store: JobStore) -> None:
    for job_id, seconds in (("late", 30.0), ("first", 10.5), ("second", 20.0), ("future", 40.001)):
        await created(store, job_id, expires_at=NOW + seconds)

    assert await store.due(NOW + 10.499, 10) == []
    assert await store.due(NOW + 40, 10) == ["first", "second", "late"]
    assert await store.due(NOW + 40, 2) == ["first", "second"]


async def test_when_a_job_is_due_follows_its_changes(store: JobStore) -> None:
    over = await ended(store, "a", webhook=Delivery("http://x"))
    assert await store.due(over.due(), 10) == ["a"]
    assert over.webhook is not None

    told = over.notified(over.webhook.attempted(Attempt(NOW + 3, 200)), NOW + 3)
    await store.save([Change(told)])

    assert told.due() == NOW + 2 + 3_600
    assert await store.due(told.due() - 1, 10) == []
    assert await store.due(told.due(), 10) == ["a"]


# --- forgetting, and hearing


async def test_a_deleted_job_leaves_nothing_behind(store: JobStore) -> None:
    over = await ended(store, "a")
    await created(store, "b")
    await store.put_instances([(Chunk("never created", i), b"[]") for i in range(3)])
    await store.delete(["a", "unknown", "never created"])

    gone = [Chunk("a", 0), *(Chunk("never created", i) for i in range(3))]
    assert await store.load(["a"]) == [None]
    assert await store.instances(gone) == [None] * 4
    assert await store.outcomes(gone) == [None] * 4
    assert (await ids_of_pages(store, 9), await store.due(NOW + 1e6, 9)) == ([["b"]], ["b"])
    assert await store.save([Change(over.notified(Delivery("http://x"), NOW), 0, b"2")]) == [False]
    assert await store.outcomes([Chunk("a", 0)]) == [None]


async def test_who_listens_hears_what_has_changed(store: JobStore) -> None:
    heard: list[str] = []

    def hear(ids: Sequence[str] | None) -> None:
        asyncio.get_running_loop()  # else it raises
        heard.extend(ids or ())

    await created(store, "a")
    store.listen(hear)
    store.listen(lambda _: None)
    # A store may begin to hear only after a while: until then a hint is lost, as any may be.
    await eventually(lambda: _heard_of_a_change(store, heard), "a first hint")
    heard.clear()

    queued = await created(store, "b")
    assert await store.save([Change(begun(queued)), Change(begun(job("unknown")))]) == [True, False]
    await eventually(lambda: "b" in heard, "the hint of a change")
    await store.delete(["b"])
    await eventually(lambda: heard.count("b") >= 2, "the hint of its end")

    assert "unknown" not in heard


async def _heard_of_a_change(store: JobStore, heard: list[str]) -> bool:
    (found,) = await store.load(["a"])
    assert found is not None
    await store.save([Change(found.notified(Delivery("http://x"), NOW))])
    return "a" in heard
