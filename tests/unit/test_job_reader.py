from __future__ import annotations

import asyncio
import json
from contextlib import aclosing

import pytest

from application.job_reader import Interrupted
from application.job_service import CHUNK
from application.job_watch import LAST_WAIT, LOOK_AGAIN
from domain import errors
from domain.job import Chunk, JobStatus
from domain.ports import Search
from tests.unit.job_site import TODO, Site, pieces
from tests.virtual_time import now, virtual_time


@virtual_time
async def test_one_waits_for_a_job_until_it_is_over_or_as_long_as_one_wants_to() -> None:
    site = Site()
    job = await site.jobs.submit(TODO, ["a"])
    assert await site.jobs.wait(job.id, until=0.5) == job
    waiting = [asyncio.create_task(each.wait(job.id, until=30.0)) for each in (site.jobs, site.process())]
    await site.work()
    assert {each.status for each in await asyncio.gather(*waiting)} == {JobStatus.SUCCEEDED}
    assert now() == 1.5
    with pytest.raises(errors.JobNotFound):
        await site.jobs.wait("unknown", until=30.0)


@virtual_time
async def test_outcomes_come_in_order_as_soon_as_they_are_there() -> None:
    site = Site()
    job = await site.jobs.submit_chunks(TODO, pieces(CHUNK + 2))

    async def listen() -> list[tuple[int, float]]:
        return [(piece.count(b"\n"), round(now())) async for piece in site.jobs.outcomes(job.id)]

    listening = asyncio.create_task(listen())
    await site.runner.run([Chunk(job.id, 0)])  # 250 instances are 8 groups, four at a time
    await site.runner.run([Chunk(job.id, 1)])
    assert await listening == [(CHUNK, 2), (2, 3)]
    assert [piece.count(b"\n") async for piece in site.jobs.outcomes(job.id)] == [CHUNK, 2]


@virtual_time
async def test_an_outcome_that_comes_early_waits_for_those_before_it() -> None:
    site = Site()
    job = await site.jobs.submit_chunks(TODO, pieces(CHUNK + 2))
    await site.runner.run([Chunk(job.id, 1)])
    async with aclosing(site.jobs.outcomes(job.id)) as telling:
        first = asyncio.ensure_future(anext(telling))
        await asyncio.sleep(10.0)
        assert not first.done()
        await site.runner.run([Chunk(job.id, 0)])
        assert (await first).startswith(b'{"prediction":"<0>"}\n')


@virtual_time
async def test_an_instance_that_was_not_asked_before_the_end_has_an_error() -> None:
    site = Site()
    job = await site.jobs.submit_chunks(TODO, pieces(CHUNK + 2))
    await site.runner.run([Chunk(job.id, 1)])
    await site.jobs.cancel(job.id)
    first, last = [piece async for piece in site.jobs.outcomes(job.id)]
    lines = [json.loads(line) for line in first.splitlines()]
    assert len(lines) == CHUNK
    assert lines[0] == lines[-1]
    assert lines[0]["error"]["kind"] == "job-conflict"
    assert "canceled" in lines[0]["error"]["detail"]
    assert last == b'{"prediction":"<250>"}\n{"prediction":"<251>"}\n'


@virtual_time
async def test_outcomes_that_are_forgotten_are_not_told_as_an_empty_end() -> None:
    site = Site()
    job = await site.jobs.submit_chunks(TODO, pieces(CHUNK + 2))
    await site.work()
    async with aclosing(site.jobs.outcomes(job.id)) as telling:
        await anext(telling)
        await site.store.delete([job.id])
        with pytest.raises(errors.JobNotFound):
            await anext(telling)


@virtual_time
async def test_events_are_told_as_they_happen_and_end_with_the_job() -> None:
    site = Site()
    job = await site.jobs.submit(TODO, ["a"])

    async def listen(last: tuple[int, int]) -> list[tuple[str, JobStatus, float] | None]:
        events = site.jobs.events(job.id, last)
        return [told and (told[0].name, told[1].status, now()) async for told in events]

    listening = asyncio.create_task(listen((0, 0)))
    await asyncio.sleep(2 * LOOK_AGAIN + 1.0)
    await site.work()
    done = 2 * LOOK_AGAIN + 2.0
    assert await listening == [
        ("queued", JobStatus.QUEUED, 0.0),
        None,
        None,
        ("running", JobStatus.RUNNING, done - 1.0),
        ("progress", JobStatus.SUCCEEDED, done),
        ("succeeded", JobStatus.SUCCEEDED, done),
    ]
    assert [each and each[0] for each in await listen((0, 2))] == ["progress", "succeeded"]
    assert site.jobs._watch._waiting == {}


@virtual_time
async def test_who_waits_when_the_process_stops_is_told_what_is_true_now() -> None:
    site = Site()
    job = await site.jobs.submit(TODO, ["a"])
    waiting = asyncio.create_task(site.jobs.wait(job.id, until=30.0))
    asking = asyncio.create_task(site.jobs.submit_and_wait(TODO, ["b"], until=30.0))
    await asyncio.sleep(0.1)

    site.jobs.stop_waiting()

    assert await waiting == job
    asked, outcomes = await asking
    assert (asked.status, outcomes) == (JobStatus.QUEUED, None)
    assert (await site.jobs.submit_and_wait(TODO, ["c"], until=30.0))[1] is None
    assert now() == pytest.approx(0.1 + LAST_WAIT)


@virtual_time
async def test_who_gets_an_answer_soon_after_the_stop_has_it() -> None:
    site = Site()
    asking = asyncio.create_task(site.jobs.submit_and_wait(TODO, ["a"], until=30.0))
    await asyncio.sleep(0.1)
    working = asyncio.create_task(site.work())  # which takes a second
    await asyncio.sleep(0.5)

    site.jobs.stop_waiting()

    answered, outcomes = await asking
    assert (answered.status, outcomes) == (JobStatus.SUCCEEDED, b'{"prediction":"<a>"}\n')
    await working


@virtual_time
async def test_events_end_when_the_process_stops_and_outcomes_do_not_look_complete() -> None:
    site = Site()
    job = await site.jobs.submit_chunks(TODO, pieces(CHUNK + 2))
    await site.runner.run([Chunk(job.id, 0)])

    async def listen() -> list[str]:
        return [told[0].name async for told in site.jobs.events(job.id) if told]

    listening = asyncio.create_task(listen())
    async with aclosing(site.jobs.outcomes(job.id)) as telling:
        assert (await anext(telling)).count(b"\n") == CHUNK
        site.jobs.stop_waiting()
        with pytest.raises(Interrupted):
            await anext(telling)
    assert "succeeded" not in await listening
    assert site.jobs._watch._waiting == {}


@virtual_time
async def test_there_are_no_events_of_a_job_that_is_forgotten() -> None:
    site = Site()
    job = await site.jobs.submit(TODO, ["a"])
    async with aclosing(site.jobs.events(job.id)) as events:
        assert await anext(events)
        await site.store.delete([job.id])
        with pytest.raises(errors.JobNotFound):
            await anext(events)
    assert site.jobs._watch._waiting == {}


@virtual_time
async def test_jobs_are_listed_and_a_queued_one_has_a_position() -> None:
    site = Site()
    jobs = [await site.jobs.submit(TODO, ["a"]) for _ in range(3)]
    page = await site.jobs.page(Search(2, status=JobStatus.QUEUED, model="m"))
    assert ([*page.jobs], await site.jobs.position(jobs[2])) == ([jobs[2], jobs[1]], 2)
    assert [*(await site.jobs.page(Search(2, page.next))).jobs] == [jobs[0]]
    await site.work()
    assert await site.jobs.position(await site.jobs.get(jobs[0].id)) is None
