from __future__ import annotations

import asyncio
import gc
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from application.bundling import PORTION
from application.job_service import CHUNK
from application.job_watch import LOOK_AGAIN
from domain import errors
from domain.job import Chunk, Job, JobStatus
from domain.ports import Change, Created, IdempotencyKey
from domain.prediction import ModelRef
from domain.webhook import Attempt, Delivery
from tests.fakes_jobs import FakeJobStore
from tests.unit.job_site import EPOCH, TODO, Site, clock, pieces, settle
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

KEYED = replace(TODO, idempotency=IdempotencyKey("p", "key", "fingerprint"))


@virtual_time
async def test_a_job_is_recorded_before_it_is_queued_and_queued_before_it_is_accepted() -> None:
    site = Site()
    site.store.trouble.seconds = site.queue.trouble.seconds = 1.0
    submitting = asyncio.create_task(site.jobs.submit(replace(TODO, webhook="http://h"), ["a", "é"]))
    await asyncio.sleep(1.5)
    assert ([*site.store.jobs], site.queue.published) == ([*site.store.jobs][:1], [])

    job = await submitting
    assert now() == 2.0
    assert site.store.jobs == {job.id: job}
    assert site.queue.published == [Chunk(job.id, 0)]
    assert json.loads(site.store.inputs[Chunk(job.id, 0)]) == ["a", "é"]
    assert (job.total, job.status, job.created_at, job.expires_at) == (
        2,
        JobStatus.QUEUED,
        EPOCH,
        EPOCH + 60.0,
    )
    assert (job.retention, job.webhook, job.changed_at) == (1000.0, Delivery("http://h"), EPOCH)
    assert await site.jobs.get(job.id) == job


@virtual_time
async def test_bulk_work_waits_in_its_own_lane() -> None:
    site = Site()
    await site.jobs.submit(replace(TODO, bulk=True), ["a"])
    assert site.queue.deliver(bulk=False) == []
    assert len(site.queue.deliver(bulk=True)) == 1


@virtual_time
async def test_what_nobody_serves_is_not_accepted() -> None:
    site = Site()
    unknown = replace(TODO, model=ModelRef("unknown"))
    for refused in (
        site.jobs.submit(unknown, ["a"]),
        site.jobs.submit_and_wait(unknown, ["a"], 9.0),
        site.jobs.submit_chunks(unknown, pieces(2)),
    ):
        with pytest.raises(errors.ModelNotFound):
            await refused
    assert site.calls() == []


@pytest.mark.parametrize("lost", [False, True])
@virtual_time
async def test_what_could_not_be_queued_was_not_accepted_and_leaves_nothing(lost: bool) -> None:
    site = Site()
    site.queue.trouble.down, site.queue.trouble.answers_lost = not lost, lost
    with pytest.raises(errors.QueueUnavailable):
        await site.jobs.submit(TODO, ["a"])
    assert (site.store.jobs, site.store.inputs) == ({}, {})
    await site.work()
    assert (site.store.jobs, site.store.results) == ({}, {})


@virtual_time
async def test_what_could_not_be_recorded_is_not_queued() -> None:
    site = Site()
    site.store.trouble.down = True
    with pytest.raises(errors.QueueUnavailable):
        await site.jobs.submit(TODO, ["a"])
    assert site.queue.published == []


@pytest.mark.parametrize("leaves_at", [0.5, 1.5, 2.5])  # before, and while, it is recorded; when it is queued
@virtual_time
async def test_a_caller_who_leaves_before_the_job_is_accepted_leaves_nothing(leaves_at: float) -> None:
    site = Site()
    site.store.trouble.seconds = site.queue.trouble.seconds = 1.0
    before = asyncio.create_task(site.jobs.submit(KEYED, ["b"]))
    await settle()  # the next one waits for this one's way to the store
    leaving = asyncio.create_task(site.jobs.submit(TODO, ["a"]))
    await asyncio.sleep(leaves_at)
    leaving.cancel()
    await asyncio.wait([leaving])
    await asyncio.sleep(5.0)
    assert leaving.cancelled()
    assert [*site.store.jobs] == [(await before).id]


@virtual_time
async def test_nobody_complains_where_what_a_caller_has_left_could_not_be_recorded() -> None:
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    site = Site()
    site.store.trouble.seconds, site.store.trouble.down = 1.0, True
    leaving = asyncio.create_task(site.jobs.submit(TODO, ["a"]))
    await asyncio.sleep(0.5)
    leaving.cancel()
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    del leaving  # and what it holds
    gc.collect()

    assert complaints == []


@virtual_time
async def test_a_large_job_that_cannot_be_recorded_leaves_nothing() -> None:
    class Full(FakeJobStore):
        async def create(self, jobs: object) -> list[Created]:  # noqa: ARG002
            raise errors.Overloaded

    site = Site(Full())
    with pytest.raises(errors.Overloaded):
        await site.jobs.submit_chunks(TODO, pieces(CHUNK + 1))
    assert site.store.inputs == {}


@virtual_time
async def test_a_large_job_of_which_a_part_was_queued_is_queued_whole_when_its_caller_comes_again() -> None:
    site, total = Site(), CHUNK * (PORTION + 2)
    site.queue.trouble.seconds = 1.0
    asyncio.get_running_loop().call_later(1.5, vars(site.queue.trouble).update, {"down": True})
    with pytest.raises(errors.QueueUnavailable):
        await site.jobs.submit_chunks(replace(KEYED, bulk=True), pieces(total))
    (job,) = site.store.jobs.values()
    await site.runner.run([Chunk(job.id, 0)])
    site.queue.trouble.down = False
    site.queue.published.clear()

    again = await site.jobs.submit_chunks(replace(KEYED, bulk=True), pieces(total))
    assert (again.id, again.status) == (job.id, JobStatus.RUNNING)
    assert site.queue.published == [Chunk(job.id, i) for i in range(1, PORTION + 2)]


@virtual_time
async def test_who_says_the_same_under_the_same_key_has_the_same_job() -> None:
    site = Site()
    first = await site.jobs.submit(KEYED, ["a"])
    await site.work()
    again = await site.process().submit(KEYED, ["a"])
    other = await site.jobs.submit(replace(TODO, idempotency=IdempotencyKey("q", "key", "f")), ["a"])

    assert again.id == first.id != other.id
    assert again.status is JobStatus.SUCCEEDED
    assert site.queue.published == [Chunk(first.id, 0), Chunk(other.id, 0)]


@virtual_time
async def test_who_says_something_else_under_the_same_key_is_refused() -> None:
    site = Site()
    await site.jobs.submit(KEYED, ["a"])
    other = replace(KEYED, idempotency=IdempotencyKey("p", "key", "another fingerprint"))
    with pytest.raises(errors.InvalidRequest, match="Idempotency-Key"):
        await site.jobs.submit(other, ["b"])
    assert len(site.store.jobs) == len(site.store.inputs) == 1


@virtual_time
async def test_who_died_between_record_and_queue_queues_it_when_he_comes_again() -> None:
    site = Site()
    site.queue.trouble.seconds = 10.0
    dying = asyncio.create_task(site.jobs.submit(KEYED, ["a"]))
    await asyncio.sleep(1.0)
    dying.cancel()
    await asyncio.wait([dying])
    site.queue.deliver()
    site.queue.published.clear()

    job = await site.process().submit(KEYED, ["a"])
    assert [*site.store.jobs] == [job.id]
    assert site.queue.published[-1] == Chunk(job.id, 0)


@virtual_time
async def test_of_two_with_the_same_key_the_failure_of_one_does_not_undo_what_the_other_was_told() -> None:
    site, other = Site(), Site()
    other.store = site.store
    other.queue = site.queue
    one, two = site.process(), site.process()
    site.queue.trouble.seconds = 1.0
    site.queue.trouble.down = True
    failing = asyncio.create_task(one.submit(KEYED, ["a"]))
    await asyncio.sleep(0.5)
    accepted = asyncio.create_task(two.submit(KEYED, ["a"]))
    with pytest.raises(errors.QueueUnavailable):
        await failing
    site.queue.trouble.down = False

    job = await accepted
    assert site.store.jobs == {job.id: job}
    await site.work()
    assert (await two.get(job.id)).status is JobStatus.SUCCEEDED


@virtual_time
async def test_who_waits_has_the_answer_the_moment_it_is_there() -> None:
    site = Site()
    waiting = asyncio.create_task(site.jobs.submit_and_wait(TODO, ["a", "b"], until=30.0))
    await settle()
    await site.work()
    job, outcomes = await waiting
    assert (job.status, outcomes) == (JobStatus.SUCCEEDED, b'{"prediction":"<a>"}\n{"prediction":"<b>"}\n')
    assert now() == pytest.approx(1.001)


@virtual_time
async def test_a_job_that_is_over_before_its_submission_returns_is_not_waited_for() -> None:
    site = Site()
    site.queue.trouble.seconds = 3.0
    waiting = asyncio.create_task(site.jobs.submit_and_wait(TODO, ["a"], until=30.0))
    await asyncio.sleep(1.0)
    (job_id,) = site.store.jobs
    await site.runner.run([Chunk(job_id, 0)])
    job, _ = await waiting
    assert (job.status, now()) == (JobStatus.SUCCEEDED, 3.0)


@virtual_time
async def test_who_waits_for_a_job_that_was_accepted_before_hears_of_that_one() -> None:
    site = Site()
    await site.jobs.submit(KEYED, ["a"])
    waiting = asyncio.create_task(site.jobs.submit_and_wait(KEYED, ["a"], until=30.0))
    await settle()
    await site.runner.run([site.queue.published[0]])
    job, outcomes = await waiting
    assert (job.status, outcomes) == (JobStatus.SUCCEEDED, b'{"prediction":"<a>"}\n')
    assert now() == pytest.approx(1.001)


@virtual_time
async def test_who_waits_in_vain_has_the_job_as_it_is() -> None:
    site = Site()
    job, outcomes = await site.jobs.submit_and_wait(TODO, ["a"], until=3.0)
    assert (job.status, outcomes, now()) == (JobStatus.QUEUED, None, 3.0)


@virtual_time
async def test_who_hears_nothing_finds_the_answer_by_looking_again() -> None:
    site = Site(FakeJobStore(deaf=True))
    waiting = asyncio.create_task(site.jobs.submit_and_wait(TODO, ["a"], until=30.0))
    await settle()
    await site.work()
    job, _ = await waiting
    assert job.over
    assert now() == pytest.approx(LOOK_AGAIN, abs=0.01)


@virtual_time
async def test_who_heard_that_hints_were_lost_looks_at_once() -> None:
    site = Site(FakeJobStore(deaf=True))
    waiting = asyncio.create_task(site.jobs.submit_and_wait(TODO, ["a"], until=30.0))
    await settle()
    await site.work()
    site.store.hints_were_lost()
    await waiting
    assert now() == pytest.approx(1.001)


@virtual_time
async def test_a_waiting_caller_who_leaves_leaves_the_job_alone() -> None:
    site = Site()
    waiting = asyncio.create_task(site.jobs.submit_and_wait(TODO, ["a"], until=30.0))
    await settle()
    waiting.cancel()
    await asyncio.wait([waiting])
    await site.work()
    (job,) = site.store.jobs.values()
    assert job.status is JobStatus.SUCCEEDED
    assert site.jobs._watch._waiting == {}


@virtual_time
async def test_a_large_job_is_recorded_and_queued_in_chunks() -> None:
    site = Site()
    job = await site.jobs.submit_chunks(TODO, pieces(CHUNK * PORTION + 1))
    assert (job.total, job.chunks) == (CHUNK * PORTION + 1, PORTION + 1)
    assert site.queue.published == [Chunk(job.id, i) for i in range(PORTION + 1)]
    assert json.loads(site.store.inputs[Chunk(job.id, PORTION)]) == [CHUNK * PORTION]


@virtual_time
async def test_a_large_job_that_ends_in_an_error_leaves_nothing() -> None:
    async def broken() -> AsyncIterator[tuple[int, bytes]]:
        async for piece in pieces(CHUNK):
            yield piece
        raise errors.MalformedRequest

    site = Site()
    with pytest.raises(errors.MalformedRequest):
        await site.jobs.submit_chunks(TODO, broken())
    assert (site.store.jobs, site.store.inputs, site.queue.published) == ({}, {}, [])


@virtual_time
async def test_a_job_is_canceled_once_and_what_is_asked_for_it_is_asked_in_vain() -> None:
    site = Site()
    job = await site.jobs.submit(TODO, ["a"])
    working = asyncio.create_task(site.work())
    await asyncio.sleep(0.5)
    canceled = await site.jobs.cancel(job.id)
    assert canceled.status is JobStatus.CANCELED
    with pytest.raises(errors.JobConflict):
        await site.jobs.cancel(job.id)
    await working
    assert (site.store.jobs[job.id], site.store.results) == (canceled, {})
    with pytest.raises(errors.JobNotFound):
        await site.jobs.cancel("unknown")


async def failed(site: Site) -> Job:
    job = await site.jobs.submit(replace(TODO, webhook="http://h"), ["a"])
    site.refuses = True
    await site.work()
    site.refuses = False
    return await site.jobs.get(job.id)


@virtual_time
async def test_a_failed_job_is_replayed_with_as_much_time_as_it_had() -> None:
    site = Site()
    job = await failed(site)
    assert job.status is JobStatus.FAILED
    await asyncio.sleep(100.0)

    again = await site.jobs.replay(job.id)
    assert (again.status, again.expires_at) == (JobStatus.QUEUED, clock() + 60.0)
    await site.work()
    assert (await site.jobs.get(job.id)).status is JobStatus.SUCCEEDED
    assert [piece async for piece in site.jobs.outcomes(job.id)] == [b'{"prediction":"<a>"}\n']
    with pytest.raises(errors.JobConflict):
        await site.jobs.replay(job.id)


@virtual_time
async def test_a_replay_that_could_not_be_queued_is_repeated_until_it_is() -> None:
    site = Site()
    job = await failed(site)
    site.queue.trouble.down = True
    with pytest.raises(errors.QueueUnavailable):
        await site.jobs.replay(job.id)
    site.queue.trouble.down = False

    again = await site.jobs.replay(job.id)
    assert (again.status, again.replays) == (JobStatus.QUEUED, 1)
    await site.work()
    assert (await site.jobs.get(job.id)).status is JobStatus.SUCCEEDED


@virtual_time
async def test_a_webhook_is_called_again_when_the_job_is_over_and_has_one() -> None:
    site = Site()
    job = await failed(site)
    assert job.webhook is not None
    tried = job.webhook.attempted(Attempt(clock(), 410, "The server answered 410."))
    await site.store.save([Change(job.notified(tried, clock()))])
    await asyncio.sleep(10.0)
    again = await site.jobs.notify_again(job.id)
    assert again.webhook == replace(tried, planned=0, next_at=clock())
    without = await site.jobs.submit(TODO, ["a"])
    await site.work()
    queued = await site.jobs.submit(replace(TODO, webhook="http://h"), ["a"])
    for each in (without, queued):
        with pytest.raises(errors.JobConflict):
            await site.jobs.notify_again(each.id)
