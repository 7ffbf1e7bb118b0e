from __future__ import annotations

import pytest

from domain.errors import InputRejectedByModel, JobConflict, NoServerAvailable
from domain.job import OVER, Chunk, Failure, Job, JobStatus
from domain.job_events import events_after
from domain.prediction import ModelRef
from domain.webhook import Attempt, Delivery

NEW = Job("j", ModelRef("m"), 5, 2, created_at=100.0, expires_at=160.0, retention=1000.0, changed_at=100.0)
ONE = NEW._replace(total=2)
FAULT = Failure("server-fault", "it broke")


def sure(job: Job | None) -> Job:
    assert job is not None
    return job


def finish(job: Job, chunk: int, now: float = 120.0, *, failed: int = 0, version: str | None = "1") -> Job:
    return sure(
        job.chunk_finished(chunk, now, failed=failed, error=FAULT if failed else None, version=version)
    )


def ended(status: JobStatus) -> Job:
    begun = sure(ONE.begun(0, 110.0))
    return {
        JobStatus.SUCCEEDED: finish(begun, 0),
        JobStatus.FAILED: finish(begun, 0, failed=2),
        JobStatus.CANCELED: begun.canceled(120.0),
        JobStatus.EXPIRED: sure(begun.expired(160.0)),
    }[status]


def test_a_job_is_cut_into_chunks_and_the_last_is_what_remains() -> None:
    assert NEW.chunks == 3
    assert [NEW.size(i) for i in range(3)] == [2, 2, 1]
    assert NEW._replace(total=4).size(1) == 2
    assert NEW.open_chunks() == (Chunk("j", 0), Chunk("j", 1), Chunk("j", 2))


def test_a_begun_chunk_makes_the_job_run_since_the_first_time() -> None:
    begun = sure(NEW.begun(1, 110.0))
    again = sure(begun.begun(1, 111.0))

    assert (begun.status, begun.started_at, begun.attempts) == (JobStatus.RUNNING, 110.0, {1: 1})
    assert (again.started_at, again.attempts, again.most_attempts) == (110.0, {1: 2}, 2)
    assert sure(again.begun(0, 112.0)).most_attempts == 2
    assert again.open_chunks() == NEW.open_chunks()


def test_a_chunk_that_nobody_works_may_never_have_been_queued() -> None:
    job = finish(sure(sure(NEW.begun(0, 110.0)).begun(1, 111.0)), 0)
    assert job.untouched_chunks() == (Chunk("j", 2),)
    assert sure(job.put_back(1, 112.0)).untouched_chunks() == (Chunk("j", 1), Chunk("j", 2))
    assert job.canceled(113.0).untouched_chunks() == ()


def test_every_change_is_counted_and_dated() -> None:
    begun = sure(NEW.begun(1, 110.0))
    assert (begun.revision, begun.changed_at) == (1, 110.0)
    assert (finish(begun, 1).revision, finish(begun, 1).changed_at) == (2, 120.0)


def test_progress_is_the_sum_of_the_finished_chunks() -> None:
    job = finish(sure(sure(NEW.begun(0, 110.0)).begun(2, 110.0)), 2)
    assert (job.done, job.failed, job.status, job.completed_at) == (1, 0, JobStatus.RUNNING, None)
    assert (job.attempts, job.open_chunks()) == ({0: 1}, (Chunk("j", 0), Chunk("j", 1)))

    job = finish(job, 0, failed=1)
    assert (job.done, job.failed, job.status, job.error) == (2, 1, JobStatus.RUNNING, FAULT)

    job = finish(job, 1, version="2")
    assert (job.done, job.failed, job.status) == (4, 1, JobStatus.SUCCEEDED)
    assert (job.completed_at, job.answered_by, job.error) == (120.0, "2", FAULT)
    assert job.open_chunks() == ()


def test_a_job_fails_only_where_no_instance_was_answered() -> None:
    some = finish(finish(finish(NEW, 0, failed=2), 1, failed=2), 2)
    none = finish(finish(finish(NEW, 0, failed=2), 1, failed=2), 2, failed=1, version=None)

    assert some.status is JobStatus.SUCCEEDED
    assert (none.status, none.error, none.done, none.failed) == (JobStatus.FAILED, FAULT, 0, 5)
    assert none.answered_by == "1"


def test_who_finishes_a_chunk_second_is_told_none() -> None:
    job = finish(NEW, 0)
    assert job.chunk_finished(0, 121.0, failed=0, error=None, version="1") is None
    assert job.begun(0, 121.0) is None
    assert job.put_back(0, 121.0) is None


@pytest.mark.parametrize("status", sorted(OVER))
def test_an_end_is_an_end(status: JobStatus) -> None:
    job = ended(status)

    assert job.status is status
    assert job.over
    assert job.attempts == {}
    assert job.open_chunks() == ()
    assert job.begun(0, 200.0) is None
    assert job.put_back(0, 200.0) is None
    assert job.expired(200.0) is None
    assert job.chunk_finished(0, 200.0, failed=0, error=None, version="1") is None
    with pytest.raises(JobConflict, match=status):
        job.canceled(200.0)


@pytest.mark.parametrize("status", sorted(OVER))
def test_of_a_job_of_two_chunks_an_end_is_an_end_for_both(status: JobStatus) -> None:
    job = NEW._replace(status=status, finished=0b001)
    assert job.chunk_finished(1, 200.0, failed=0, error=None, version="1") is None
    assert job.begun(1, 200.0) is None
    assert job.put_back(1, 200.0) is None


def test_an_attempt_that_found_nobody_to_ask_does_not_count() -> None:
    twice = sure(sure(NEW.begun(1, 110.0)).begun(1, 111.0))
    job = sure(twice.put_back(1, 112.0))

    assert (job.attempts, job.status, job.changed_at) == ({1: 1}, JobStatus.RUNNING, 112.0)
    assert sure(NEW.put_back(1, 112.0)).attempts == {1: 0}


def test_a_job_expires_when_its_time_has_come_and_not_before() -> None:
    assert NEW.expired(159.9) is None
    assert sure(NEW.expired(160.0)).status is JobStatus.EXPIRED


def test_only_a_failed_job_is_replayed() -> None:
    for job in (NEW, sure(NEW.begun(0, 110.0)), *map(ended, sorted(OVER - {JobStatus.FAILED}))):
        with pytest.raises(JobConflict, match=job.status):
            job.replayed(200.0)


def test_a_replayed_job_begins_anew_with_as_much_time_as_before() -> None:
    job = ended(JobStatus.FAILED).replayed(500.0)

    assert job == ONE._replace(
        status=JobStatus.QUEUED,
        replays=1,
        replayed_at=500.0,
        expires_at=560.0,
        changed_at=500.0,
        most_attempts=1,
        answered_by="1",
        revision=3,
    )
    assert job.open_chunks() == (Chunk("j", 0),)
    assert finish(job, 0, 510.0, failed=2).replayed(1000.0).expires_at == 1060.0


def test_something_is_due_when_it_expires_and_then_when_it_is_forgotten() -> None:
    assert NEW.due() == 160.0
    assert ended(JobStatus.SUCCEEDED).due() == 1120.0
    assert ended(JobStatus.FAILED).replayed(500.0).due() == 560.0


def test_the_end_of_a_job_is_told_at_once_and_it_is_not_forgotten_before_that_is_done() -> None:
    told = ONE._replace(webhook=Delivery("http://example.org"))
    assert told.due() == 160.0

    over = finish(told, 0)
    assert over.due() == 120.0
    assert over.webhook == Delivery("http://example.org", next_at=120.0)

    assert over.webhook is not None
    late = over.notified(over.webhook.claimed(5000.0), 121.0)
    assert late.due() == 5000.0
    assert late.completed_at == 120.0

    done = late.notified(over.webhook.attempted(Attempt(122.0, 200)), 122.0)
    assert done.due() == 1120.0
    assert [late.outlived(5e6), done.outlived(1119.0), done.outlived(1120.0)] == [False, False, True]
    assert not told.outlived(5e6)


def test_a_webhook_that_fails_does_not_keep_a_job_beyond_its_retention() -> None:
    over = finish(ONE._replace(webhook=Delivery("http://example.org"), retention=200.0), 0)
    assert over.webhook is not None
    once = over.webhook.attempted(Attempt(122.0, 500, "no"))
    tried = over.notified(once, 122.0)
    again = over.notified(once.attempted(Attempt(130.0, 500, "no")), 130.0)

    assert (tried.due(), again.due()) == (127.0, 320.0)  # the next call would be at 430
    assert (again.outlived(319.0), again.outlived(320.0)) == (False, True)
    asked_for = again.notified(again.webhook.scheduled(400.0), 400.0) if again.webhook else again
    assert (asked_for.due(), asked_for.outlived(400.0)) == (400.0, False)


def test_a_failure_is_the_errors_kind_and_detail_and_the_models_own_code() -> None:
    assert Failure.of(NoServerAvailable("down")) == Failure("no-server-available", "down")
    refused = InputRejectedByModel("no", code=415)
    assert Failure.of(refused) == Failure("input-rejected-by-model", "no", 415)


def names(job: Job, last: tuple[int, int] = (0, 0)) -> list[str]:
    return [event.name for event in events_after(job, last)]


def test_events_are_told_from_the_record_alone() -> None:
    begun = sure(NEW.begun(0, 110.0))
    half = finish(begun, 0)
    assert names(NEW) == ["queued"]
    assert names(begun) == ["queued", "running"]
    assert names(half) == ["queued", "running", "progress"]
    assert names(half.canceled(130.0)) == ["queued", "running", "progress", "canceled"]
    assert names(NEW.canceled(130.0)) == ["queued", "canceled"]


def test_who_has_heard_an_event_hears_what_came_after_it_and_nothing_twice() -> None:
    life = [NEW]
    life.append(sure(NEW.begun(0, 110.0)))
    for chunk in range(3):
        life.append(finish(life[-1], chunk, failed=NEW.size(chunk)))
    life.append(life[-1].replayed(200.0))
    life.append(sure(life[-1].begun(1, 210.0)))
    life.append(life[-1].canceled(220.0))

    for earlier in range(len(life)):
        for later in range(earlier, len(life)):
            heard = events_after(life[earlier], (0, 0))
            news = events_after(life[later], heard[-1].id)
            ids = [event.id for event in (*heard, *news)]
            assert ids == sorted(set(ids))
            assert (not news) == (earlier == later)


def test_progress_is_told_for_every_chunk_and_before_the_end() -> None:
    job, last, heard = NEW, (0, 0), []
    for chunk in range(3):
        job = finish(job, chunk)
        news = events_after(job, last)
        last = news[-1].id
        heard += [event.name for event in news]
    assert heard == ["queued", "progress", "progress", "progress", "succeeded"]
