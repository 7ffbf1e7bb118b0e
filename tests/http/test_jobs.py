from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from bootstrap.settings import JobsSettings
from domain.errors import InputRejectedByModel, QueueUnavailable, ServerFault
from interface.http import jobs

if TYPE_CHECKING:
    from pathlib import Path

    import httpx
    from fastapi import FastAPI

    from tests.fakes import FakeServer

ASK: dict[str, Any] = {"model_name": "m", "instances": ["x", "y"]}
WAIT = {"prefer": "wait=5"}
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z"


async def over(client: httpx.AsyncClient, **ask: Any) -> dict[str, Any]:
    """A job that is over."""
    answer = await client.post("/jobs", json=ASK | ask, headers=WAIT)
    assert answer.status_code == 200, answer.text
    job: dict[str, Any] = answer.json()
    return job


async def test_a_job_is_accepted_worked_and_told_of(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.seconds = 0.1
    accepted = await client.post("/jobs", json=ASK)
    job = (await client.get(accepted.headers["location"], headers=WAIT)).json()
    lines = await client.get(job["urls"]["predictions"])

    assert (accepted.status_code, accepted.json()["status"]) == (202, "queued")
    assert accepted.headers["location"] == f"/jobs/{job['id']}" == job["urls"]["self"]
    for name in ("created_at", "started_at", "completed_at", "expires_at"):
        assert re.fullmatch(TIME, job.pop(name))
    assert job == {
        "id": job["id"],
        "status": "succeeded",
        "model_name": "m",
        "model_version": "1.0",
        "progress": {"done": 2, "failed": 0, "total": 2},
        "queue_position": None,
        "attempts": 1,
        "error": None,
        "urls": job["urls"],
        "webhook": None,
    }
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert lines.text == '{"prediction":"a:m/1.0:x"}\n{"prediction":"a:m/1.0:y"}\n'


async def test_a_preference_is_applied_and_capped(client: httpx.AsyncClient) -> None:
    answer = await client.post("/jobs", json=ASK, headers={"prefer": "respond-async, wait=100000"})

    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=120"


@pytest.mark.parametrize("prefer", ["respond-async", "wait=soon", "wait=-1", ""])
async def test_a_preference_that_is_none_is_ignored(client: httpx.AsyncClient, prefer: str) -> None:
    answer = await client.post("/jobs", json=ASK, headers={"prefer": prefer})

    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


async def test_who_waits_too_short_gets_the_job_as_it_is(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.seconds = 60.0
    answer = await client.post("/jobs", json=ASK, headers={"prefer": "wait=0"})
    again = await client.get(answer.json()["urls"]["self"], headers={"prefer": "wait=1"})

    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "wait=0")
    assert (again.status_code, again.json()["status"]) == (200, "running")


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"{", 400, None),
        (b"[]", 422, "#"),
        (b'{"instances": [1]}', 422, "#/model_name"),
        (b'{"model_name": "m", "instances": []}', 422, "#/instances"),
        (b'{"model_name": "m", "instances": [1, NaN]}', 422, "#/instances/1"),
        (b'{"model_name": "m", "instances": [1], "host": "x"}', 422, "#/host"),
        (b'{"model_name": "m", "instances": [1], "timeout": "5"}', 422, "#/timeout"),
        (b'{"model_name": "m", "instances": [1], "timeout": 0}', 422, "#/timeout"),
        (b'{"model_name": "m", "instances": [1], "timeout": 1e9}', 422, "#/timeout"),
        (b'{"model_name": "m", "instances": [1], "timeout": true}', 422, "#/timeout"),
        (b'{"model_name": "m", "instances": [1], "webhook_url": "ftp://x"}', 422, "#/webhook_url"),
        (b'{"model_name": "m", "instances": [1], "webhook_url": "https://"}', 422, "#/webhook_url"),
        (b'{"model_name": "m", "instances": [1], "webhook_url": "https://x:y"}', 422, "#/webhook_url"),
        (b'{"model_name": "m", "instances": [1], "webhook_url": "https://a b"}', 422, "#/webhook_url"),
        (b'{"model_name": "m", "instances": [1], "webhook_url": "https://a.b"}', 422, "#/webhook_url"),
        (b'{"model_name": "m", "instances": [' + b"1," * 1_200 + b"1]}", 422, "#/instances"),
        (b'{"model_name": "nope", "instances": [1]}', 404, None),
        (b'{"model_name": "m", "model_version": "9", "instances": [1]}', 404, None),
        (b'{"model_name": "m", "instances": ["' + b"x" * 10_000 + b'"]}', 413, None),
    ],
)  # fmt: skip
async def test_what_cannot_be_a_job_is_refused(
    client: httpx.AsyncClient, body: bytes, status: int, pointer: str | None
) -> None:
    answer = await client.post("/jobs", content=body)

    assert answer.status_code == status
    assert [each["pointer"] for each in answer.json().get("errors", [])] == ([pointer] if pointer else [])
    assert (await client.get("/jobs")).json()["jobs"] == []


async def test_a_long_list_is_worked_in_parts_and_told_in_order(client: httpx.AsyncClient) -> None:
    job = await over(client, instances=list(range(1_200)))

    lines = (await client.get(job["urls"]["predictions"])).text.splitlines()
    assert job["progress"] == {"done": 1_200, "failed": 0, "total": 1_200}
    assert lines == [f'{{"prediction":"a:m/1.0:{i}"}}' for i in range(1_200)]


async def test_a_job_has_as_much_time_as_it_is_given(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.seconds = 60.0

    job = await over(client, timeout=0.1)

    assert job["status"] == "expired"
    lines = (await client.get(job["urls"]["predictions"])).text.splitlines()
    assert len(lines) == 2
    assert all("/problems/job-conflict" in line for line in lines)


@pytest.mark.parametrize("many", [2, 700])
async def test_the_same_key_gives_the_same_job(client: httpx.AsyncClient, many: int) -> None:
    ask = ASK | {"instances": list(range(many))}
    first = await client.post("/jobs", json=ask, headers={"idempotency-key": "k-1"} | WAIT)
    again = await client.post("/jobs", json=ask, headers={"idempotency-key": "k-1"})
    other = await client.post("/jobs", json=ask | {"timeout": 5}, headers={"idempotency-key": "k-1"})
    turned = await client.post(
        "/jobs", json=ask | {"instances": ask["instances"][::-1]}, headers={"idempotency-key": "k-1"}
    )
    new = await client.post("/jobs", json=ask, headers={"idempotency-key": "k-2"})

    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["location"] == first.headers["location"]
    assert other.status_code == turned.status_code == 422
    assert other.json()["type"] == turned.json()["type"] == "/problems/invalid-request"
    assert new.json()["id"] != first.json()["id"]


@pytest.mark.parametrize("key", ["", " ", "a b", "ü", "k" * 256])
async def test_a_key_is_visible_ascii(client: httpx.AsyncClient, key: str) -> None:
    answer = await client.post("/jobs", json=ASK, headers=[(b"idempotency-key", key.encode())])

    assert answer.status_code == 422


async def test_ten_at_once_with_one_key_are_one_job(client: httpx.AsyncClient) -> None:
    answers = await asyncio.gather(
        *(client.post("/jobs", json=ASK, headers={"idempotency-key": "k"}) for _ in range(10))
    )

    assert len({each.json()["id"] for each in answers}) == 1
    assert len((await client.get("/jobs")).json()["jobs"]) == 1


async def test_a_job_can_be_canceled_once(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.seconds = 60.0
    url = (await client.post("/jobs", json=ASK)).json()["urls"]["cancel"]

    canceled, again = await client.delete(url), await client.delete(url)

    assert (canceled.status_code, canceled.json()["status"]) == (200, "canceled")
    assert (again.status_code, again.json()["type"]) == (409, "/problems/job-conflict")


async def test_a_job_that_waits_knows_its_place(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.seconds = 60.0
    bulk = {"priority": "u=7"}
    places = []
    for _ in range(6):  # four are worked at once
        url = (await client.post("/jobs", json=ASK, headers=bulk)).headers["location"]
        await asyncio.sleep(0.05)
        places.append((await client.get(url)).json()["queue_position"])

    assert places == [None, None, None, None, 0, 1]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/predictions"),
        ("GET", "/events"),
        ("POST", "/replay"),
        ("POST", "/webhook"),
    ],
)
@pytest.mark.parametrize(
    "job_id", ["x", "6f1d2c3b-5a49-4e8f-9b7c-0d1e2f3a4b5c", "%00", "%C3%28", "a" * 5_000, "ü'\""]
)
async def test_an_unknown_job_is_not_found(
    client: httpx.AsyncClient, method: str, path: str, job_id: str
) -> None:
    answer = await client.request(method, f"/jobs/{job_id}{path}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


async def test_jobs_are_listed_page_by_page_the_newest_first(client: httpx.AsyncClient) -> None:
    ids = [(await over(client))["id"] for _ in range(5)]

    pages, path = [], "/jobs?limit=2&status=succeeded"
    while path:
        answer = await client.get(path)
        pages.append([job["id"] for job in answer.json()["jobs"]])
        path = answer.json()["next"]
        assert answer.headers.get("link") == (f'<{path}>; rel="next"' if path else None)

    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]


async def test_jobs_are_listed_by_model_and_status(client: httpx.AsyncClient) -> None:
    job = await over(client)

    for query, found in [
        ("model_name=m&status=succeeded", [job["id"]]),
        ("model_name=other", []),
        ("status=failed", []),
    ]:
        answer = await client.get(f"/jobs?{query}")
        assert [each["id"] for each in answer.json()["jobs"]] == found


@pytest.mark.parametrize("query", ["timeout=x", "unknown=1", "webhook_url=nonsense", "webhook_url=ftp://h"])
async def test_a_query_that_makes_no_sense_beside_a_json_body_is_refused(
    client: httpx.AsyncClient, query: str
) -> None:
    assert (await client.post(f"/jobs?{query}", json=ASK)).status_code == 422


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "status=gone", "cursor=x", "cursor=", "limit=" + "9" * 30]
)
async def test_a_query_that_makes_no_sense_is_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/jobs?{query}")).status_code == 422


async def test_a_failed_job_says_why_and_can_be_replayed(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.error = ServerFault("It makes no sense.")
    failed = await over(client)
    letters = (await client.get("/jobs?status=failed")).json()["jobs"]
    server.error = None

    replayed = await client.post(f"/jobs/{failed['id']}/replay")
    again = await client.get(failed["urls"]["self"], headers=WAIT)
    conflict = await client.post(f"/jobs/{failed['id']}/replay")

    assert letters == [failed]
    assert failed["status"] == "failed"
    assert failed["error"] == {
        "type": "/problems/server-fault",
        "title": "The model server failed on this request, or its answer makes no sense",
        "status": 502,
        "detail": "It makes no sense.",
        "instance": failed["urls"]["self"],
        "error": "It makes no sense.",
    }
    assert (replayed.status_code, replayed.headers["location"]) == (202, failed["urls"]["self"])
    assert (again.json()["status"], again.json()["error"]) == ("succeeded", None)
    assert conflict.status_code == 409


async def test_all_failed_jobs_of_a_model_can_be_replayed(
    client: httpx.AsyncClient, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MOST", 2)  # at a time
    server.error = InputRejectedByModel("no", code=400)
    failed = [await over(client, instances=["x"]) for _ in range(3)]
    server.error = None

    assert (await client.post("/jobs/replay?model_name=other")).json() == {"replayed": 0}
    assert (await client.post("/jobs/replay?model_name=m")).json() == {"replayed": 3}
    for job in failed:
        again = await client.get(job["urls"]["self"], headers=WAIT)
        assert again.json()["status"] == "succeeded"


async def test_without_a_place_to_keep_them_jobs_are_refused(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.state.gateway.jobs, "submit", _unavailable)

    answer = await client.post("/jobs", json=ASK)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["type"] == "/problems/queue-unavailable"


class TestWebhooks:
    @pytest.fixture
    def jobs_settings(self, tmp_path: Path) -> JobsSettings:
        return JobsSettings.model_validate(
            {
                "path": tmp_path / "jobs.sqlite",
                "webhook_secrets": ["whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            }
        )

    async def test_what_came_of_a_webhook_is_told(self, client: httpx.AsyncClient) -> None:
        url = "https://127.0.0.1:9/hook"  # which is not public: it is refused before it is called
        job = await over(client, webhook_url=url)

        told = await self._told(client, job["urls"]["self"])

        assert (told["url"], told["delivered"]) == (url, False)
        assert re.fullmatch(TIME, told["next_attempt_at"])
        (attempt,) = told["attempts"]
        assert re.fullmatch(TIME, attempt["at"])
        assert attempt["status"] is None
        assert attempt["problem"]

    async def _told(self, client: httpx.AsyncClient, url: str) -> dict[str, Any]:
        async with asyncio.timeout(10):
            while True:
                webhook: dict[str, Any] = (await client.get(url)).json()["webhook"]
                if webhook["attempts"]:
                    return webhook
                await asyncio.sleep(0.05)

    async def test_a_webhook_can_be_called_again(self, client: httpx.AsyncClient) -> None:
        job = await over(client, webhook_url="https://127.0.0.1:9/hook")
        bare = await over(client)

        again = await client.post(f"/jobs/{job['id']}/webhook")
        none = await client.post(f"/jobs/{bare['id']}/webhook")

        assert again.status_code == 202
        assert again.json()["webhook"]["next_attempt_at"]
        assert none.status_code == 409


async def test_each_method_is_known_at_its_place(client: httpx.AsyncClient) -> None:
    for path, allowed in [
        ("/jobs", {"GET", "POST"}),
        ("/jobs/x", {"GET", "DELETE"}),
        ("/jobs/x/events", {"GET"}),
    ]:
        answer = await client.put(path)
        assert answer.status_code == 405
        assert allowed <= set(answer.headers["allow"].split(", "))


async def _unavailable(*_: object) -> None:
    raise QueueUnavailable
