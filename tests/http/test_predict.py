from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from domain.errors import InputRejectedByModel, ServerFault
from domain.fleet import ServedModel
from tests.fakes import FakeServer
from tests.http.happened import happened

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

PATH = "/api/predict/"


@pytest.fixture
def server() -> FakeServer:
    """It serves `cached`, too, whose answers are remembered."""
    return FakeServer(models=(ServedModel("m", "1.0"), ServedModel("cached", "1.0")))


@pytest.mark.parametrize("path", ["/api/predict", "/api/predict/", "/api/predict/?asgi"])
async def test_one_text_has_one_prediction_by_both_ways_through_the_server(
    caller: httpx.AsyncClient, path: str
) -> None:
    answer = await caller.post(path, json={"text": "Hey, what's up?"})

    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "m",
        "model_version": "1.0",
        "prediction": "a:m/1.0:Hey, what's up?",
    }


async def test_what_it_does_is_a_job(client: httpx.AsyncClient) -> None:
    await client.post(PATH, json={"text": "x"})

    (job,) = (await client.get("/jobs")).json()["jobs"]
    assert (job["status"], job["progress"]["done"]) == ("succeeded", 1)


@pytest.mark.parametrize("jobs_model", ["cached"])
async def test_what_is_remembered_needs_no_job(client: httpx.AsyncClient) -> None:
    first = await client.post(PATH, json={"text": "x"})
    again = await client.post(PATH, json={"text": "x"})
    fresh = await client.post(PATH, json={"text": "x"}, headers={"cache-control": "no-cache"})

    assert "cache-status" not in first.headers
    assert again.headers["cache-status"].startswith("model-dispatcher; hit; ttl=")
    assert first.json() == again.json() == fresh.json()
    assert len((await client.get("/jobs")).json()["jobs"]) == 2


@pytest.mark.parametrize("jobs_model", ["cached"])
async def test_who_wants_the_model_itself_gets_it(client: httpx.AsyncClient, server: FakeServer) -> None:
    for lines in ([], [("cache-control", "no-cache"), ("cache-control", "max-age=9")]):
        await client.post(PATH, json={"text": "x"}, headers=lines)

    assert len(server.asked) == 2


@pytest.mark.parametrize("jobs_model", ["cached"])
@pytest.mark.parametrize("error", [None, InputRejectedByModel("no", code=400)])
async def test_what_must_not_be_stored_leaves_nothing_behind(
    client: httpx.AsyncClient, server: FakeServer, error: InputRejectedByModel | None
) -> None:
    server.error = error
    secret = await client.post(PATH, json={"text": "x"}, headers={"cache-control": "no-store"})
    jobs = (await client.get("/jobs")).json()["jobs"]
    server.error = None
    after = await client.post(PATH, json={"text": "x"})

    assert (secret.status_code, jobs) == (400 if error else 200, [])
    assert after.status_code == 200
    assert len(server.asked) == 2


async def test_what_must_not_be_stored_is_there_until_it_is_told(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.seconds = 0.3
    headers = {"cache-control": "no-store", "x-request-timeout": "0.05"}

    answer = await client.post(PATH, json={"text": "x"}, headers=headers)
    job = await client.get(answer.headers["location"], headers={"prefer": "wait=5"})

    assert (answer.status_code, job.json()["status"]) == (202, "succeeded")
    predictions = await client.get(job.json()["urls"]["predictions"])
    assert predictions.json() == {"prediction": "a:m/1.0:x"}


async def test_who_cannot_wait_is_told_where_the_answer_will_be(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.seconds = 0.3

    answer = await client.post(PATH, json={"text": "x"}, headers={"x-request-timeout": "0.05"})
    job = await client.get(answer.headers["location"], headers={"prefer": "wait=5"})

    assert (answer.status_code, answer.json()["status"]) == (202, "running")
    assert job.json()["status"] == "succeeded"
    predictions = await client.get(job.json()["urls"]["predictions"])
    assert predictions.json() == {"prediction": "a:m/1.0:x"}


@pytest.mark.parametrize(("priority", "bulk"), [("u=7", True), ("u=1", False)])
async def test_who_is_not_in_a_hurry_has_a_bulk_job(
    client: httpx.AsyncClient, app: FastAPI, server: FakeServer, priority: str, bulk: bool
) -> None:
    server.seconds = 0.3
    headers = {"x-request-timeout": "0.05", "priority": priority}

    job = (await client.post(PATH, json={"text": "x"}, headers=headers)).json()

    assert (await app.state.gateway.jobs.get(job["id"])).bulk is bulk


async def test_a_caller_who_leaves_does_not_cancel_the_job(
    caller: httpx.AsyncClient, server: FakeServer
) -> None:
    server.seconds = 0.2
    asking = asyncio.create_task(caller.post(PATH, json={"text": "x"}))
    await happened(lambda: server.asked)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)

    (job,) = (await caller.get("/jobs")).json()["jobs"]
    job = (await caller.get(job["urls"]["self"], headers={"prefer": "wait=5"})).json()
    assert job["status"] == "succeeded"
    assert server.cancelled == 0


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b"{}", "#/text"),
        (b'{"text": ""}', "#/text"),
        (b'{"text": 1}', "#/text"),
        (b'{"text": ["x"]}', "#/text"),
        (b'{"text": "x", "model_name": "m"}', "#/model_name"),
        (b'{"text": NaN}', "#/text"),
        (b'"x"', "#"),
    ],
)
async def test_bad_input_is_a_clear_error(client: httpx.AsyncClient, body: bytes, pointer: str) -> None:
    answer = await client.post(PATH, content=body)

    assert answer.status_code == 422
    assert [each["pointer"] for each in answer.json()["errors"]] == [pointer]


async def test_a_text_that_the_model_refuses_is_pointed_at(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.error = InputRejectedByModel("The text is too long.", code=413)

    answer = await client.post(PATH, json={"text": "x"})

    assert answer.status_code == answer.json()["status"] == 413
    assert answer.json()["errors"] == [{"detail": "The text is too long.", "pointer": "#/text"}]


async def test_an_error_that_does_not_pass_is_told(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.error = ServerFault("It makes no sense.")

    answer = await client.post(PATH, json={"text": "x"})

    assert (answer.status_code, answer.json()["type"]) == (502, "/problems/server-fault")


@pytest.mark.parametrize("jobs_model", ["nope"])
async def test_a_default_model_that_nobody_serves_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.post(PATH, json={"text": "x"})

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/model-not-found")


async def test_a_job_that_is_canceled_meanwhile_has_no_answer(
    caller: httpx.AsyncClient, server: FakeServer
) -> None:
    server.seconds = 60.0
    asking = asyncio.create_task(caller.post(PATH, json={"text": "x"}))
    await happened(lambda: server.asked)
    (job,) = (await caller.get("/jobs")).json()["jobs"]

    await caller.delete(job["urls"]["cancel"])

    answer = await asking
    assert (answer.status_code, answer.json()["type"]) == (409, "/problems/job-conflict")


@pytest.mark.parametrize("jobs_timeout", [0.05])
async def test_a_job_whose_time_is_over_has_no_answer(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.seconds = 60.0

    answer = await client.post(PATH, json={"text": "x"})

    assert (answer.status_code, answer.json()["type"]) == (504, "/problems/deadline-exceeded")


async def test_nobody_waits_longer_than_is_configured(
    client: httpx.AsyncClient, app: FastAPI, server: FakeServer
) -> None:
    server.seconds = 60.0
    gateway = app.state.gateway
    app.state.gateway = replace(gateway, limits=gateway.limits.model_copy(update={"max_timeout": 0.1}))

    async with asyncio.timeout(5):
        answer = await client.post(PATH, json={"text": "x"}, headers={"x-request-timeout": "50"})

    assert answer.status_code == 202


async def test_many_wait_at_once(caller: httpx.AsyncClient, server: FakeServer) -> None:
    server.seconds = 0.05

    answers: list[Any] = await asyncio.gather(*(caller.post(PATH, json={"text": str(i)}) for i in range(100)))

    assert [each.json()["prediction"] for each in answers] == [f"a:m/1.0:{i}" for i in range(100)]
