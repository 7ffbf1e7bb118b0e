from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

from domain.errors import ServerUnreachable
from domain.fleet import ServedModel

if TYPE_CHECKING:
    import httpx

    from bootstrap.settings import JobsSettings
    from tests.fakes import FakeServer


async def test_a_gateway_whose_models_are_served_is_ready(client: httpx.AsyncClient) -> None:
    answer = await client.get("/health/ready")

    assert answer.status_code == 200
    assert answer.json() == {
        "status": "ok",
        "reasons": [],
        "servers": {"local": {"url": "http://127.0.0.1:8080/", "state": "ok"}},
        "models": {"m": True},
    }


async def test_a_gateway_without_its_server_is_alive_and_says_what_it_looks_for(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.probe_error = ServerUnreachable("connection refused")

    ready, health, live = [await client.get(f"/health{end}") for end in ("/ready", "", "/live")]

    assert (ready.status_code, health.status_code, live.status_code) == (503, 200, 200)
    assert ready.headers["retry-after"] == "1"
    assert ready.json()["reasons"] == ["No server can answer for m now. local: connection refused"]
    assert ready.json()["servers"]["local"]["url"] == "http://127.0.0.1:8080/"
    assert ready.json()["models"] == {"m": False}


async def test_a_required_model_without_a_worker_makes_the_gateway_unready(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.models = (ServedModel("m", "1.0", workers_ready=0), ServedModel("other", "1.0"))

    answer = await client.get("/health/ready")

    assert answer.status_code == 503
    assert answer.json()["models"] == {"m": False, "other": True}


async def test_the_state_of_every_part_is_told_with_what_waits_in_it(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.seconds = 60.0  # which four bulk jobs wait for at a time
    for _ in range(7):
        body = {"model_name": "m", "instances": ["a"]}
        assert (await client.post("/jobs", json=body, headers={"priority": "u=6"})).status_code == 202

    three = {"state": "ok", "counts": {"interactive": 0, "bulk": 3}}
    health: dict[str, Any] = {}
    async with asyncio.timeout(5):
        while health.get("components") != {"jobs": three, "queue": three}:
            health = (await client.get("/health")).json()

    assert health == (await client.get("/health/ready")).json() | {"components": health["components"]}


async def test_a_store_of_jobs_that_is_gone_is_told_and_predictions_go_on(
    client: httpx.AsyncClient, jobs_settings: JobsSettings
) -> None:
    with sqlite3.connect(jobs_settings.path) as stranger:
        stranger.execute("DROP TABLE backlog")
    stranger.close()

    health, ready = await client.get("/health"), await client.get("/health/ready")

    assert (health.status_code, ready.status_code) == (200, 200)
    assert health.json()["status"] == "ok"
    assert health.json()["components"]["jobs"] == {
        "state": "The jobs' database fails: no such table: backlog.",
        "counts": {},
    }
    assert str(jobs_settings.path) not in health.text


async def test_models_are_listed_with_versions_servers_and_policies(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.models = (ServedModel("m", "2.0", default=False, workers_ready=0), ServedModel("m", "1.0"))

    listed, one = (await client.get("/models")).json(), (await client.get("/models/m")).json()

    assert listed == {"models": [one]}
    assert one["default_version"] == "1.0"
    assert [(v["version"], v["default"], v["ready"], v["workers"]) for v in one["versions"]] == [
        ("1.0", True, True, 1),
        ("2.0", False, False, 0),
    ]
    assert one["versions"][1]["servers"] == {"local": "has no ready worker for m/2.0 (1 configured)"}
    assert one["policies"][0].startswith("Deadline(default=30,")


async def test_a_model_that_is_not_served_is_not_found(client: httpx.AsyncClient) -> None:
    answer = await client.get("/models/nope")

    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/model-not-found")
