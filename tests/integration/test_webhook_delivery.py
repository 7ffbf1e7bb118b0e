"""The way of a job's end to a receiver, with all that may come between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from application import housekeeping
from application.housekeeping import Housekeeping
from application.job_records import JobRecords
from application.webhook_calls import CLAIM
from domain import webhook
from domain.job import Job
from domain.ports import Change, NewJob
from domain.prediction import ModelRef
from domain.webhook import Delivery
from infrastructure.sqlite_jobs import SqliteJobs
from infrastructure.webhook_sender import SignedWebhooks
from tests.fakes_jobs import FakeJobQueue, FakeJobStore
from tests.integration.processes import until
from tests.integration.webhook_receiver import LOOPBACK, NEW, Receiver, answer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conftest import StartGateway
    from tests.integration.processes import RunningGateway


@pytest.mark.parametrize(
    ("answers", "statuses", "delivered"),
    [
        (("500 Oops", "503 Busy", "204 No Content"), [500, 503, 204], True),
        (("410 Gone", "204 No Content"), [410], False),
    ],
)
async def test_a_jobs_end_is_told_until_the_receiver_accepts_it_or_is_gone(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[str], statuses: Sequence[int], *, delivered: bool
) -> None:
    monkeypatch.setattr(housekeeping, "EVERY", 0.02)
    monkeypatch.setattr(webhook, "RETRY_AFTER", (0.1,) * 9)
    store, receiver = FakeJobStore(), Receiver([*map(answer, answers)])
    async with receiver.serving():
        await end_a_job(store, f"http://127.0.0.1:{receiver.port}/")
        async with aclosing(SignedWebhooks([NEW], allow_private=LOOPBACK)) as send:
            keeper = Housekeeping(
                JobRecords(store), FakeJobQueue(), send, clock=time.time, chance=lambda: 0.0
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(keeper.run(), 2.0)
    told = store.jobs["job-1"].webhook
    assert told is not None
    assert ([each.status for each in told.attempts], told.delivered) == (statuses, delivered)
    assert {each.headers["webhook-id"] for each in receiver.received} == {"job-1:0"}
    for each in receiver.received:
        assert Webhook(NEW).verify(each.body, each.headers)["data"]["id"] == "job-1"


async def end_a_job(store: FakeJobStore, url: str) -> None:
    now = time.time()
    job = Job("job-1", ModelRef("m"), 1, 500, now, now + 60, 600, webhook=Delivery(url))
    await store.create([NewJob(job)])
    ended = job.chunk_finished(0, now, failed=0, error=None, version="1")
    assert ended is not None
    await store.save([Change(ended)])


# --- a gateway that is killed


async def test_a_call_whose_gateway_was_killed_before_it_was_recorded_is_made_again_by_the_next(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    path, receiver = tmp_path / "jobs.sqlite", Receiver([b"", answer("204 No Content")])
    settings = {
        "SERVERS__LOCAL__URL": "http://127.0.0.1:9",  # nobody: the job is canceled, no model is asked
        "JOBS__PATH": str(path),
        "JOBS__WEBHOOK_SECRETS": json.dumps([NEW]),
        "JOBS__WEBHOOK_NETWORKS": json.dumps([str(each) for each in LOOPBACK]),
    }
    async with receiver.serving():
        killed = await asyncio.to_thread(start_gateway, **settings)
        job_id = await _end_at(killed, f"http://127.0.0.1:{receiver.port}/hook")
        await asyncio.to_thread(until, lambda: len(receiver.received) == 1, "the first call")
        await asyncio.to_thread(killed.process.stop, signal.SIGKILL)
        await _end_claim(path, job_id)
        gateway = await asyncio.to_thread(start_gateway, **settings)
        await asyncio.to_thread(until, lambda: len(receiver.received) == 2, "the next gateway's call")
        told = await _delivered(gateway, job_id)

    first, again = receiver.received
    assert first.headers["webhook-id"] == again.headers["webhook-id"] == f"{job_id}:0"
    assert first.body == again.body
    assert Webhook(NEW).verify(again.body, again.headers)["type"] == "job.canceled"
    assert [each["status"] for each in told["attempts"]] == [204]


async def _end_at(gateway: RunningGateway, url: str) -> str:
    """A job that is over, and has its webhook at `url`."""
    ask = {"model_name": "sentiment", "instances": ["x"], "webhook_url": url}
    async with httpx.AsyncClient(base_url=gateway.url, timeout=30) as client:
        accepted = (await client.post("/jobs", json=ask)).raise_for_status().json()
        canceled = (await client.delete(accepted["urls"]["cancel"])).raise_for_status().json()
    assert canceled["status"] == "canceled"
    return str(accepted["id"])


async def _end_claim(path: Path, job_id: str) -> None:
    """Let the minute pass for which the killed gateway had claimed the call, of which nothing is known."""
    async with aclosing(await SqliteJobs.open(path)) as store:
        (job,) = await store.load([job_id])
        assert job is not None
        assert job.webhook is not None
        assert (job.webhook.attempts, job.webhook.delivered) == ((), False)
        assert job.webhook.next_at is not None
        now = time.time()
        assert now < job.webhook.next_at <= now + CLAIM
        assert await store.save([Change(job.notified(job.webhook.claimed(now), now))]) == [True]


async def _delivered(gateway: RunningGateway, job_id: str) -> dict[str, Any]:
    """What is told of the webhook, once it is delivered."""
    async with asyncio.timeout(20), httpx.AsyncClient(base_url=gateway.url) as client:
        while True:
            told: dict[str, Any] = (await client.get(f"/jobs/{job_id}")).json()["webhook"]
            if told["delivered"]:
                return told
            await asyncio.sleep(0.05)
