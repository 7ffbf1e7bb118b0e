from __future__ import annotations

import asyncio

import pytest

from application.job_records import JobRecords
from domain.errors import JobConflict, JobNotFound, QueueUnavailable
from domain.job import Chunk, Job, JobStatus
from domain.ports import Change, NewJob
from domain.prediction import ModelRef
from tests.fakes_jobs import FakeJobStore, Trouble
from tests.virtual_time import virtual_time

JOB = Job("j", ModelRef("m"), 4, 1, created_at=0.0, expires_at=60.0, retention=1000.0)


def finished(job: Job, chunk: int) -> Change | None:
    changed = job.chunk_finished(chunk, 1.0, failed=0, error=None, version="1")
    return None if changed is None else Change(changed, chunk, b"%d" % chunk)


async def two_processes() -> tuple[FakeJobStore, JobRecords, JobRecords]:
    store = FakeJobStore(Trouble(seconds=1.0))
    records = JobRecords(store)
    await records.create(NewJob(JOB, b"[]"))
    return store, records, JobRecords(store)


@virtual_time
async def test_a_job_is_found_by_its_id() -> None:
    _, records, other = await two_processes()
    assert await records.get("j") == await other.find("j") == JOB
    assert await other.instances(Chunk("j", 0)) == b"[]"
    assert await records.find("k") is None
    with pytest.raises(JobNotFound, match="k"):
        await records.get("k")


@virtual_time
async def test_of_all_who_change_one_job_at_once_none_is_lost() -> None:
    store, *both = await two_processes()

    await asyncio.gather(*(both[i % 2].change(JOB, lambda job, i=i: finished(job, i)) for i in range(4)))  # type: ignore[misc]

    job = store.jobs["j"]
    assert (job.status, job.done, job.finished, job.revision) == (JobStatus.SUCCEEDED, 4, 0b1111, 4)
    assert store.results == {Chunk("j", i): b"%d" % i for i in range(4)}


@virtual_time
async def test_of_two_who_make_the_same_change_one_is_told_none() -> None:
    store, one, two = await two_processes()
    told = await asyncio.gather(*(each.change(JOB, lambda job: finished(job, 2)) for each in (one, two)))
    assert sorted(job is None for job in told) == [False, True]
    assert store.jobs["j"].revision == 1


@virtual_time
async def test_of_those_who_change_one_job_in_one_process_none_does_so_in_vain() -> None:
    store, records, _ = await two_processes()
    many = JOB._replace(id="many", total=50)
    await records.create(NewJob(many, b"[]"))
    store.calls.clear()

    await asyncio.gather(*(records.change(many, lambda job, i=i: finished(job, i)) for i in range(50)))  # type: ignore[misc]

    assert store.jobs["many"].done == 50
    assert store.calls == [("save", 1)] * 50
    assert records._turns == {}


@virtual_time
async def test_those_who_change_one_job_do_not_hold_up_another() -> None:
    _, records, _ = await two_processes()
    await records.create(NewJob(JOB._replace(id="k"), b"[]"))
    at = asyncio.get_running_loop().time()
    first = asyncio.gather(*(records.change(JOB, lambda job, i=i: finished(job, i)) for i in range(4)))  # type: ignore[misc]
    await records.change(JOB._replace(id="k"), lambda job: finished(job, 0))
    assert asyncio.get_running_loop().time() - at <= 2.0
    await first


@virtual_time
async def test_where_the_store_fails_one_who_changes_a_job_those_behind_do_not_wait_to_be_told() -> None:
    store, records, _ = await two_processes()
    store.trouble.seconds, store.trouble.down = 10.0, True
    at = asyncio.get_running_loop().time()
    told = await asyncio.gather(
        *(records.change(JOB, lambda job, i=i: finished(job, i)) for i in range(4)),  # type: ignore[misc]
        return_exceptions=True,
    )
    assert {type(each) for each in told} == {QueueUnavailable}
    assert asyncio.get_running_loop().time() - at == 10.0
    store.trouble.down = False
    assert await records.change(JOB, lambda job: finished(job, 0)) is not None


@virtual_time
async def test_who_is_cancelled_while_it_changes_a_job_disturbs_nobody_behind() -> None:
    store, records, _ = await two_processes()
    changes = [asyncio.create_task(records.change(JOB, lambda job, i=i: finished(job, i))) for i in range(4)]  # type: ignore[misc]
    await asyncio.sleep(0.5)
    changes[0].cancel()
    changes[2].cancel()
    await asyncio.wait(changes)
    await records.aclose()
    assert store.jobs["j"].finished == 0b1011  # the first was on its way
    assert records._turns == {}


@virtual_time
async def test_who_changes_a_job_that_is_gone_is_told_none() -> None:
    store, records, _ = await two_processes()
    await store.delete(["j"])
    assert await records.change(JOB, lambda job: finished(job, 0)) is None
    assert store.results == {}


@virtual_time
async def test_a_change_may_object_to_what_became_of_the_job_meanwhile() -> None:
    _, records, other = await two_processes()
    await other.change(JOB, lambda job: Change(job.canceled(1.0)))
    with pytest.raises(JobConflict):
        await records.change(JOB, lambda job: Change(job.canceled(1.0)))


@virtual_time
async def test_a_store_that_is_not_there_is_told() -> None:
    store, records, _ = await two_processes()
    store.trouble.down = True
    with pytest.raises(QueueUnavailable):
        await records.change(JOB, lambda job: finished(job, 0))


@virtual_time
async def test_those_who_meet_travel_to_the_store_together() -> None:
    store, records, _ = await two_processes()
    store.calls.clear()
    await asyncio.gather(*(records.find("j") for _ in range(600)))
    assert store.calls == [("load", 256), ("load", 256), ("load", 88)]


@virtual_time
async def test_closing_waits_for_all_that_is_on_its_way() -> None:
    store, records, _ = await two_processes()
    found, changed = records.find("j"), asyncio.create_task(records.change(JOB, lambda job: finished(job, 0)))
    await asyncio.sleep(0)
    await records.aclose()
    assert found.done()
    assert store.jobs["j"].revision == 1
    assert await changed is not None
