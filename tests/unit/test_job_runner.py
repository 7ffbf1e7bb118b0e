from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from application.job_records import JobRecords
from application.job_runner import ALONE, MOST_ATTEMPTS, PATIENCE, JobRunner
from domain import errors
from domain.job import Chunk, Failure, Job, JobStatus
from domain.ports import Change, NewJob
from domain.prediction import ModelRef, PredictionResult, Refusal
from tests.fakes_jobs import FakeJobQueue, FakeJobStore
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from domain.prediction import PredictionRequest

EPOCH = 1_700_000_000.0
DAY = 86_400.0
FIRST = Chunk("j", 0)


@dataclass
class Site:
    """A store with one job of two chunks of two instances, a queue, and a model that takes `seconds`."""

    store: FakeJobStore = field(default_factory=FakeJobStore)
    queue: FakeJobQueue = field(default_factory=FakeJobQueue)
    seconds: float = 1.0
    script: Callable[[PredictionRequest], BaseException | None] = lambda _: None
    asked: list[PredictionRequest] = field(default_factory=list)
    timeout: float = DAY
    bulk: bool = True

    def __post_init__(self) -> None:
        self.job = Job("j", ModelRef("m"), 4, 2, EPOCH, EPOCH + self.timeout, DAY, bulk=self.bulk)

    async def begin(self) -> Site:
        await self.store.put_instances([(FIRST, b'["a","b"]'), (Chunk("j", 1), b'["c","d"]')])
        await self.store.create([NewJob(self.job)])
        return self

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        self.asked.append(request)
        await asyncio.sleep(self.seconds)
        error = self.script(request)
        if error is not None:
            raise error
        answers = tuple(Refusal(415, "no") if i == "d" else f"<{i}>" for i in request.instances)
        return PredictionResult(ModelRef("m", "1.0"), answers)

    def runner(self) -> JobRunner:
        """Of a process of its own."""
        records = JobRecords(self.store)
        return JobRunner(records, self.queue, self.predict, clock=clock, chance=lambda: 0.5)

    async def stopped_at_work(self, chunks: Sequence[Chunk]) -> None:
        """As SIGTERM does it, half a second after the begin."""
        working = asyncio.create_task(self.runner().run(chunks))
        await asyncio.sleep(0.5)
        working.cancel()
        await asyncio.wait([working])
        assert working.cancelled()

    async def killed_at_work(self, chunks: Sequence[Chunk]) -> None:
        """As SIGKILL does it: nothing more is recorded."""
        self.after(0.25, down=True)
        await self.stopped_at_work(chunks)
        self.store.trouble.down = False

    def after(self, seconds: float, **trouble: bool) -> None:
        """So much later the store is in `trouble`."""
        asyncio.get_running_loop().call_later(seconds, vars(self.store.trouble).update, trouble)

    def recorded(self) -> Job:
        return self.store.jobs["j"]

    def outcomes(self, chunk: int = 0) -> list[object]:
        return [json.loads(line) for line in self.store.results[Chunk("j", chunk)].splitlines()]


def clock() -> float:
    return EPOCH + now()


@virtual_time
async def test_chunks_are_worked_at_once_and_what_came_of_them_is_recorded() -> None:
    site = await Site().begin()

    await site.runner().run([FIRST, Chunk("j", 1)])

    refused = {"kind": "input-rejected-by-model", "detail": "no", "code": 415}
    assert site.outcomes(0) == [{"prediction": "<a>"}, {"prediction": "<b>"}]
    assert site.outcomes(1) == [{"prediction": "<c>"}, {"error": refused}]
    job = site.recorded()
    assert (job.status, job.done, job.failed, job.answered_by) == (JobStatus.SUCCEEDED, 3, 1, "1.0")
    assert (job.started_at, job.completed_at) == (EPOCH, EPOCH + 1.0)
    assert job.error == Failure("input-rejected-by-model", "no", 415)


@virtual_time
async def test_a_job_is_running_while_it_is_worked() -> None:
    site = await Site().begin()
    working = asyncio.create_task(site.runner().run([FIRST]))
    await asyncio.sleep(0.5)
    assert (site.recorded().status, site.recorded().attempts) == (JobStatus.RUNNING, {0: 1})
    await working
    assert (site.recorded().status, site.recorded().attempts) == (JobStatus.RUNNING, {})


@virtual_time
async def test_what_was_not_accepted_or_is_over_is_not_worked() -> None:
    site = await Site().begin()
    await site.runner().run([Chunk("unknown", 0), Chunk("j", 7)])
    assert site.recorded() == site.job

    await site.runner().run([FIRST])
    await site.runner().run([FIRST])
    site.store.jobs["j"] = site.recorded().canceled(clock())
    await site.runner().run([Chunk("j", 1)])
    assert len(site.asked) == 1


@virtual_time
async def test_of_two_who_work_the_same_chunk_the_first_one_stays() -> None:
    site = await Site().begin()
    site.script = lambda _: errors.InputRejectedByModel("no") if now() > 1.2 else None
    slow = asyncio.create_task(site.runner().run([FIRST]))
    await asyncio.sleep(0)
    site.seconds = 0.5
    await site.runner().run([FIRST])
    first, recorded = site.store.results[FIRST], site.recorded()
    await slow

    assert len(site.asked) == 2
    assert site.store.results[FIRST] == first
    assert site.recorded() == recorded
    assert (recorded.done, recorded.failed) == (2, 0)


@virtual_time
async def test_who_is_killed_at_work_leaves_it_to_the_next() -> None:
    site = await Site().begin()
    await site.killed_at_work([FIRST])
    assert (site.recorded().attempts, site.store.results) == ({0: 1}, {})

    await site.runner().run([FIRST])
    assert site.outcomes() == [{"prediction": "<a>"}, {"prediction": "<b>"}]
    assert site.recorded().most_attempts == 2


@virtual_time
async def test_who_is_told_to_stop_leaves_it_to_the_next_and_that_does_not_count() -> None:
    site = await Site().begin()
    for _ in range(MOST_ATTEMPTS + 1):
        await site.stopped_at_work([FIRST, Chunk("j", 1)])
    assert site.recorded().attempts == {0: 0, 1: 0}
    assert site.recorded().untouched_chunks() == (FIRST, Chunk("j", 1))

    await site.runner().run([FIRST])
    assert site.outcomes() == [{"prediction": "<a>"}, {"prediction": "<b>"}]


@virtual_time
async def test_a_store_that_hangs_does_not_keep_anybody_from_stopping() -> None:
    site = await Site().begin()
    asyncio.get_running_loop().call_later(0.25, vars(site.store.trouble).update, {"seconds": 1_000.0})

    await site.stopped_at_work([FIRST])

    assert now() < 5.0


@virtual_time
async def test_a_chunk_that_kills_whoever_works_it_fails_in_the_end_without_being_asked_about() -> None:
    site = await Site().begin()
    for _ in range(MOST_ATTEMPTS):
        await site.killed_at_work([FIRST])
    assert len(site.asked) == MOST_ATTEMPTS

    await site.runner().run([FIRST])
    lost = {"kind": "worker-lost", "detail": str(errors.WorkerLost()), "code": None}
    assert site.outcomes() == [{"error": lost}] * 2
    assert len(site.asked) == MOST_ATTEMPTS
    await site.runner().run([Chunk("j", 1)])
    assert (site.recorded().status, site.recorded().failed) == (JobStatus.SUCCEEDED, 3)


@virtual_time
async def test_what_nobody_can_answer_is_queued_anew_after_a_while_and_never_given_up_for_that() -> None:
    site = await Site(timeout=2 * MOST_ATTEMPTS * PATIENCE).begin()
    site.script = lambda _: errors.NoServerAvailable()
    for i in range(1, MOST_ATTEMPTS + 3):
        await site.runner().run([FIRST])
        assert i * PATIENCE <= now() < i * (PATIENCE + 6.0)
        assert site.queue.deliver(bulk=True) == [FIRST]
    assert site.queue.deliver(bulk=False) == []

    site.script = lambda _: None
    await site.runner().run([FIRST])
    assert site.outcomes() == [{"prediction": "<a>"}, {"prediction": "<b>"}]


@pytest.mark.parametrize("error", [errors.ModelNotFound("gone"), errors.VersionNotFound("gone")])
@virtual_time
async def test_a_job_for_a_model_that_is_gone_fails_and_is_not_queued_for_ever(
    error: errors.DispatchError,
) -> None:
    site = await Site().begin()
    site.script = lambda _: error
    await site.runner().run([FIRST])
    assert (
        site.outcomes() == [{"error": {"kind": Failure.of(error).kind, "detail": "gone", "code": None}}] * 2
    )
    assert site.queue.published == []


@virtual_time
async def test_an_answer_may_take_longer_than_failures_are_waited_out() -> None:
    site = await Site(seconds=2 * PATIENCE).begin()
    await site.runner().run([FIRST])
    assert site.outcomes() == [{"prediction": "<a>"}, {"prediction": "<b>"}]
    assert now() == 2 * PATIENCE


@virtual_time
async def test_instances_that_are_too_many_for_one_deadline_are_asked_apart() -> None:
    site = await Site(seconds=30.0).begin()
    site.script = lambda r: errors.DeadlineExceeded() if len(r.instances) > 1 else None
    await site.runner().run([FIRST])
    assert site.outcomes() == [{"prediction": "<a>"}, {"prediction": "<b>"}]
    assert site.queue.published == []


@virtual_time
async def test_who_gives_up_a_chunk_of_a_life_that_is_over_leaves_the_next_alone() -> None:
    site = await Site().begin()
    site.script = lambda _: errors.NoServerAvailable()
    slow = asyncio.create_task(site.runner().run([FIRST]))
    await asyncio.sleep(1.5)
    failed = site.recorded()._replace(status=JobStatus.FAILED, revision=site.recorded().revision + 1)
    again = failed.replayed(clock()).begun(0, clock())
    assert again is not None
    site.store.jobs["j"] = again
    await slow
    assert (site.recorded(), site.queue.published) == (again, [])


@virtual_time
async def test_a_job_whose_time_is_over_expires_while_it_is_worked() -> None:
    site = await Site(timeout=60.0).begin()
    site.script = lambda _: errors.NoServerAvailable()
    await site.runner().run([FIRST, Chunk("j", 1)])
    assert (now(), site.recorded().status) == (60.0, JobStatus.EXPIRED)
    assert site.queue.published == []


@virtual_time
async def test_a_job_that_comes_too_late_expires_without_being_asked_about() -> None:
    site = await Site(timeout=60.0).begin()
    site.seconds = 0.0
    await asyncio.sleep(60.0)
    await site.runner().run([FIRST])
    assert (site.recorded().status, site.store.results) == (JobStatus.EXPIRED, {})


@virtual_time
async def test_what_is_over_meanwhile_is_not_queued_anew() -> None:
    site = await Site().begin()
    site.script = lambda _: errors.NoServerAvailable()
    working = asyncio.create_task(site.runner().run([FIRST]))
    await asyncio.sleep(10.0)
    site.store.jobs["j"] = site.recorded().canceled(clock())
    await working
    assert site.queue.published == []
    assert site.recorded().status is JobStatus.CANCELED


@virtual_time
async def test_what_was_worked_for_a_life_of_the_job_that_is_over_does_not_end_its_next() -> None:
    site = await Site().begin()
    site.script = lambda _: errors.InputRejectedByModel("no")
    site.seconds = 10.0
    slow = asyncio.create_task(site.runner().run([FIRST]))
    await asyncio.sleep(1.0)
    failed = site.recorded()._replace(status=JobStatus.FAILED, revision=site.recorded().revision + 1)
    site.store.jobs["j"] = failed.replayed(clock())
    await slow
    assert site.recorded() == failed.replayed(EPOCH + 1.0)


@pytest.mark.parametrize("during", [0.0, 0.5, 1.5])
@virtual_time
async def test_a_store_that_is_not_there_is_told_so_that_the_chunk_is_delivered_again(during: float) -> None:
    site = await Site().begin()
    site.store.trouble.seconds = 0.25
    site.after(during, down=True)
    with pytest.raises(errors.QueueUnavailable):
        await site.runner().run([FIRST])

    site.store.trouble.down = False
    await site.runner().run([FIRST])
    assert site.outcomes() == [{"prediction": "<a>"}, {"prediction": "<b>"}]


@virtual_time
async def test_a_record_that_was_saved_although_the_answer_was_lost_is_not_changed_any_more() -> None:
    site = await Site().begin()
    site.after(0.5, answers_lost=True)
    with pytest.raises(errors.QueueUnavailable):
        await site.runner().run([FIRST])
    recorded = site.recorded()
    site.store.trouble.answers_lost = False
    await site.runner().run([FIRST])
    assert site.recorded() == recorded
    assert len(site.asked) == 1


@virtual_time
async def test_one_that_fails_does_not_stop_the_others_of_its_bundle() -> None:
    site = await Site().begin()
    await site.store.put_instances([(FIRST, b"no JSON")])
    with pytest.raises(ValueError, match="Expecting value"):
        await site.runner().run([FIRST, Chunk("j", 1)])
    assert site.recorded().has_finished(1)
    assert not site.recorded().has_finished(0)


@virtual_time
async def test_a_queue_that_is_not_there_when_a_chunk_is_queued_anew_is_told() -> None:
    site = await Site().begin()
    site.script = lambda _: errors.NoServerAvailable()
    site.queue.trouble.down = True
    with pytest.raises(errors.QueueUnavailable):
        await site.runner().run([FIRST])


@pytest.mark.parametrize("bug", [ValueError("a bug"), TimeoutError("a bug")])
@virtual_time
async def test_a_bug_is_neither_a_loop_nor_a_loss(bug: Exception) -> None:
    site = await Site().begin()
    site.script = lambda request: bug if "a" in request.instances else None
    await site.runner().run([FIRST])
    internal = {"kind": "internal-error", "detail": str(errors.InternalError()), "code": None}
    assert site.outcomes() == [{"error": internal}, {"prediction": "<b>"}]


@pytest.mark.parametrize("chunks", [[FIRST], [FIRST, Chunk("j", 1)]])
@virtual_time
async def test_a_cancellation_that_nobody_asked_for_is_an_error_and_not_the_end_of_whoever_works(
    chunks: list[Chunk],
) -> None:
    site = await Site().begin()
    site.script = lambda request: asyncio.CancelledError() if "a" in request.instances else None
    with pytest.raises(errors.InternalError):
        await site.runner().run(chunks)
    assert site.recorded().has_finished(1) == (len(chunks) == 2)


@pytest.mark.parametrize("chunks", [[FIRST], [FIRST, Chunk("j", 1)]])
@virtual_time
async def test_a_cancellation_that_somebody_asked_for_is_one(chunks: list[Chunk]) -> None:
    site = await Site().begin()
    working = asyncio.create_task(site.runner().run(chunks))
    await asyncio.sleep(0.5)
    working.cancel()
    await asyncio.wait([working])
    assert working.cancelled()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual_time
async def test_a_job_that_is_forgotten_while_it_is_worked_stays_so() -> None:
    site = await Site().begin()
    working = asyncio.create_task(site.runner().run([FIRST]))
    await asyncio.sleep(0.5)
    await site.store.delete(["j"])
    await working
    assert (site.store.jobs, site.store.results) == ({}, {})


@virtual_time
async def test_a_chunk_that_is_finished_between_the_look_and_the_begin_is_not_asked_about() -> None:
    site = await Site().begin()
    site.store.trouble.seconds = 0.25
    working = asyncio.create_task(site.runner().run([FIRST]))
    await asyncio.sleep(0.3)
    change = site.recorded().chunk_finished(0, clock(), failed=0, error=None, version="2")
    assert change is not None
    assert site.store._save(Change(change, 0, b"first"))
    await working
    assert (site.asked, site.store.results[FIRST]) == ([], b"first")


@virtual_time
async def test_a_chunk_is_worked_on_for_as_long_as_answers_come() -> None:
    site = await Site(seconds=PATIENCE - 1.0).begin()
    turn = iter(range(100))
    site.script = lambda _: errors.ServerFault() if next(turn) < 5 else None  # bisected: seven calls in a row
    await site.runner().run([FIRST])
    assert now() > 3 * PATIENCE
    assert site.queue.deliver(bulk=True) == []


@virtual_time
async def test_a_chunk_that_others_may_have_died_of_is_worked_alone() -> None:
    site = await Site(bulk=False).begin()
    for _ in range(ALONE):
        await site.killed_at_work([FIRST, Chunk("j", 1)])
    asked = len(site.asked)

    site.queue.trouble.seconds = 1.0
    await site.runner().run([FIRST, Chunk("j", 1)])
    assert len(site.asked) == asked
    assert site.queue.deliver(bulk=False) == []  # there they would meet again
    for chunk in site.queue.deliver(bulk=True):
        await site.runner().run([chunk])
    assert site.recorded().status is JobStatus.SUCCEEDED
