"""Jobs as their callers live through them: a real gateway, killed where it hurts, and a real TorchServe."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conftest import settings_for
from tests.integration.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import StartGateway
    from tests.integration.processes import RunningGateway, RunningTorchServe

LINES = {"content-type": "application/x-ndjson"}
POSITIVE, NEGATIVE = "I loved every minute of it.", "Utterly boring, a waste of time."


@pytest.fixture
def caller(gateway: RunningGateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        yield client


def labels(answer: httpx.Response) -> list[str]:
    return [json.loads(line)["prediction"]["label"] for line in answer.text.splitlines()]


def events(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]


def over(caller: httpx.Client, job: dict[str, Any], seconds: float = 120.0) -> dict[str, Any]:
    """The job once it is over."""
    give_up = time.monotonic() + seconds
    while job["completed_at"] is None:
        assert time.monotonic() < give_up, job
        job = caller.get(job["urls"]["self"], headers={"prefer": "wait=10"}).json()
    return job


def test_one_text_is_answered_through_the_queue_and_then_from_the_cache(caller: httpx.Client) -> None:
    text = f"{POSITIVE} {time.time()}"

    answer, again = (caller.post("/api/predict/", json={"text": text}) for _ in range(2))

    assert answer.status_code == again.status_code == 200
    assert answer.json()["prediction"]["label"] == "positive"
    assert again.json() == answer.json()
    assert "hit" in again.headers["cache-status"]


def test_a_job_is_submitted_watched_and_read(caller: httpx.Client) -> None:
    ask = {"model_name": "sentiment", "instances": [POSITIVE, NEGATIVE, ""]}
    accepted = caller.post("/jobs", json=ask)
    assert accepted.status_code == 202

    job = over(caller, accepted.json())
    lines = caller.get(job["urls"]["predictions"]).text.splitlines()

    assert job["status"] == "succeeded"
    assert job["progress"] == {"done": 2, "failed": 1, "total": 3}
    assert [json.loads(line)["prediction"]["label"] for line in lines[:2]] == ["positive", "negative"]
    assert json.loads(lines[2])["error"]["status"] == 422
    assert events(caller.get(job["urls"]["events"])) == ["queued", "running", "progress", "succeeded"]
    assert job["id"] in [each["id"] for each in caller.get("/jobs?status=succeeded").json()["jobs"]]


def test_a_submission_that_is_repeated_is_one_job(caller: httpx.Client) -> None:
    ask = {"model_name": "sentiment", "instances": [POSITIVE]}
    key = {"idempotency-key": f"order-{time.time_ns()}"}

    first, again = (caller.post("/jobs", json=ask, headers=key) for _ in range(2))
    other = caller.post("/jobs", json=ask | {"instances": [NEGATIVE]}, headers=key)

    assert first.json()["id"] == again.json()["id"]
    assert other.status_code == 422


def test_a_job_that_is_canceled_stops(caller: httpx.Client) -> None:
    ask = {"model_name": "faulty", "instances": [{"do": "sleep", "seconds": 1}] * 4}
    job = caller.post("/jobs", json=ask).json()

    canceled = caller.delete(job["urls"]["cancel"])
    lines = caller.get(job["urls"]["predictions"]).text.splitlines()

    assert canceled.json()["status"] == "canceled"
    assert [json.loads(line)["error"]["type"] for line in lines] == ["/problems/job-conflict"] * 4
    assert caller.delete(job["urls"]["cancel"]).status_code == 409


def test_ten_thousand_lines_are_answered_in_order(caller: httpx.Client) -> None:
    # Few of them are different: what is tested is the way of the lines, not the speed of the model.
    texts = [f"{POSITIVE if i % 3 else NEGATIVE} {i % 300}" for i in range(10_000)]
    body = "".join(json.dumps(text) + "\n" for text in texts)
    begun = time.monotonic()

    answer = caller.post("/jobs?model_name=sentiment", content=body, headers=LINES)
    accepted = time.monotonic() - begun
    with caller.stream("GET", answer.json()["urls"]["predictions"], timeout=300) as stream:
        found = [json.loads(line)["prediction"]["label"] for line in stream.iter_lines()]

    assert answer.status_code == 202
    assert accepted < 10
    assert found == ["positive" if i % 3 else "negative" for i in range(10_000)]
    job = over(caller, answer.json())
    assert job["progress"] == {"done": 10_000, "failed": 0, "total": 10_000}


def test_a_bulk_job_outlives_the_gateway_that_was_killed_working_it(
    start_gateway: StartGateway, torchserve: RunningTorchServe, tmp_path: Path
) -> None:
    settings = settings_for(torchserve) | {"JOBS__PATH": str(tmp_path / "jobs.sqlite")}
    killed = start_gateway(**settings)
    texts = [f"{i} {POSITIVE if i % 2 else NEGATIVE}" for i in range(3_000)]
    body = "".join(json.dumps(text) + "\n" for text in texts)
    key = {"idempotency-key": "the-bulk-job"}
    job = httpx.post(
        f"{killed.url}/jobs?model_name=sentiment", content=body, headers=LINES | key, timeout=60
    ).json()

    def done(gateway: RunningGateway) -> int:
        found: int = gateway.get(job["urls"]["self"]).json()["progress"]["done"]
        return found

    until(lambda: done(killed) > 0, "the first chunk", 120)
    killed.process.stop(signal.SIGKILL)
    gateway = start_gateway(**settings)
    before = done(gateway)

    with httpx.Client(base_url=gateway.url, timeout=300) as caller:
        again = caller.post("/jobs?model_name=sentiment", content=body, headers=LINES | key).json()
        told = labels(caller.get(job["urls"]["predictions"]))
        finished = over(caller, job)

    assert 0 < before < 3_000
    assert again["id"] == job["id"]
    assert told == ["positive" if i % 2 else "negative" for i in range(3_000)]
    assert (finished["status"], finished["progress"]["done"]) == ("succeeded", 3_000)


def test_hundreds_wait_at_once_and_each_gets_its_own_answer(gateway: RunningGateway) -> None:
    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=300)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60, limits=limits) as client:
            texts = [f"{POSITIVE if i % 2 else NEGATIVE} {i} {time.time()}" for i in range(300)]
            return await asyncio.gather(
                *(client.post("/api/predict/", json={"text": text}) for text in texts)
            )

    answers = asyncio.run(ask_all())

    assert {each.status_code for each in answers} == {200}
    found = [each.json()["prediction"]["label"] for each in answers]
    assert found == ["positive" if i % 2 else "negative" for i in range(300)]
