"""Many jobs at once: pages of them, and all that have failed; and the line that each leaves in the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from domain.errors import InputRejectedByModel
from domain.fleet import ServedModel
from tests.fakes import FakeServer

if TYPE_CHECKING:
    import httpx
    from fastapi import FastAPI

WAIT = {"prefer": "wait=5"}


@pytest.fixture
def server() -> FakeServer:
    return FakeServer(models=(ServedModel("m", "1.0"), ServedModel("other", "1.0")))


async def over(client: httpx.AsyncClient, model: str, **ask: Any) -> str:
    """The id of a job that is over."""
    answer = await client.post("/jobs", json={"model_name": model, "instances": [1]} | ask, headers=WAIT)
    assert answer.status_code == 200, answer.text
    job_id: str = answer.json()["id"]
    return job_id


async def test_the_next_page_asks_the_same(client: httpx.AsyncClient, server: FakeServer) -> None:
    wanted = []
    for _ in range(3):
        wanted.append(await over(client, "m"))
        await over(client, "other")
        server.error = InputRejectedByModel("no", code=400)
        await over(client, "m")
        server.error = None

    found: list[str] = []
    path = "/jobs?model_name=m&status=succeeded&limit=1"
    while path:
        page = (await client.get(path)).json()
        assert len(page["jobs"]) <= 1
        found += [job["id"] for job in page["jobs"]]
        path = page["next"]

    assert found == wanted[::-1]


async def test_what_is_forgotten_meanwhile_does_not_keep_others_from_being_replayed(
    client: httpx.AsyncClient, app: FastAPI, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = app.state.gateway.jobs
    replay = jobs.replay
    server.error = InputRejectedByModel("no", code=400)
    ids = [await over(client, "m") for _ in range(3)]
    server.error = None

    async def forgotten_first(job_id: str) -> Any:
        if job_id == ids[1]:
            await jobs._records.store.delete([job_id])
        return await replay(job_id)

    monkeypatch.setattr(jobs, "replay", forgotten_first)

    assert (await client.post("/jobs/replay")).json() == {"replayed": 2}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/jobs", b'{"model_name": "m", "instances": [1]}'),
        ("/jobs?model_name=m", b"1\n"),
        ("/api/predict/", b'{"text": "x"}'),
    ],
)
async def test_the_log_says_which_model_a_job_is_for(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, path: str, body: bytes
) -> None:
    headers = {"content-type": "application/x-ndjson"} if "?" in path else {}

    with caplog.at_level(logging.INFO, "dispatcher.access"):
        await client.post(path, content=body, headers=headers)

    (line,) = [each for each in caplog.records if each.name == "dispatcher.access"]
    assert line.__dict__["fields"]["model"] == "m"


async def test_a_page_has_twenty_jobs_where_nobody_says_how_many(client: httpx.AsyncClient) -> None:
    for _ in range(21):
        await client.post("/jobs", json={"model_name": "m", "instances": [1]})

    page = (await client.get("/jobs")).json()
    rest = (await client.get(page["next"])).json()

    assert (len(page["jobs"]), len(rest["jobs"]), rest["next"]) == (20, 1, None)
