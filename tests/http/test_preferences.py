"""What callers ask for in headers, and what the cache answers."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from domain.fleet import ServedModel
from domain.prediction import CacheUse, ModelRef, PredictionResult
from interface.http import preferences

if TYPE_CHECKING:
    import httpx

    from tests.fakes import FakeServer

ONE = {"model_name": "cached", "instances": ["x"]}
TWO = {"model_name": "cached", "instances": ["x", "y"]}


@pytest.fixture(autouse=True)
def serves_it(server: FakeServer) -> None:
    server.models = (ServedModel("m", "1.0"), ServedModel("cached", "1.0"))


async def test_the_cache_says_what_it_did(client: httpx.AsyncClient, server: FakeServer) -> None:
    said = [
        (await client.post("/dispatch_model", json=body)).headers["cache-status"] for body in (ONE, ONE, TWO)
    ]

    assert said == [
        "model-dispatcher; fwd=miss; stored; ttl=60",
        "model-dispatcher; hit; ttl=60",
        'model-dispatcher; fwd=partial; detail="1 of 2 known"; stored; ttl=60',
    ]
    assert [request.instances for request in server.asked] == [("x",), ("y",)]


async def test_a_model_that_is_not_cached_says_nothing_of_a_cache(client: httpx.AsyncClient) -> None:
    answer = await client.post("/dispatch_model", json={"model_name": "m", "instances": ["x"]})

    assert "cache-status" not in answer.headers


async def test_who_wants_the_model_itself_gets_it(client: httpx.AsyncClient, server: FakeServer) -> None:
    await client.post("/dispatch_model", json=ONE)

    fresh = await client.post("/dispatch_model", json=ONE, headers={"cache-control": "max-age=9, No-Cache"})

    assert fresh.headers["cache-status"] == "model-dispatcher; fwd=request; stored; ttl=60"
    assert len(server.asked) == 2


async def test_what_must_not_be_remembered_is_not(client: httpx.AsyncClient, server: FakeServer) -> None:
    secret = await client.post("/dispatch_model", json=ONE, headers={"cache-control": "no-store"})
    await client.post("/dispatch_model", json=ONE)

    assert secret.headers["cache-status"] == "model-dispatcher; fwd=miss"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/jobs", json.dumps(ONE)),
        ("/jobs", json.dumps(ONE | {"instances": ["x"] * 300})),
        ("/jobs?model_name=cached", '"x"\n'),
    ],
)
@pytest.mark.parametrize(("said", "found"), [({}, "hit"), ({"cache-control": "no-store"}, "fwd=miss")])
async def test_a_job_says_to_the_cache_what_its_caller_said(
    client: httpx.AsyncClient, path: str, body: str, said: dict[str, str], found: str
) -> None:
    headers = {"content-type": "application/x-ndjson"} if "?" in path else {}
    job = await client.post(path, content=body, headers=headers | said | {"prefer": "wait=5"})

    after = await client.post("/dispatch_model", json=ONE)

    assert job.json()["status"] == "succeeded"
    assert after.headers["cache-status"].startswith(f"model-dispatcher; {found}")


async def test_a_job_that_wants_the_model_itself_gets_it(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    await client.post("/dispatch_model", json=ONE)
    await client.post("/jobs", json=ONE, headers={"cache-control": "no-cache", "prefer": "wait=5"})

    assert len(server.asked) == 2


async def test_one_key_is_not_for_a_job_that_is_stored_and_one_that_is_not(client: httpx.AsyncClient) -> None:
    key = {"idempotency-key": "k"}

    first = await client.post("/jobs", json=ONE, headers=key)
    other = await client.post("/jobs", json=ONE, headers=key | {"cache-control": "no-store"})

    assert (first.status_code, other.status_code) == (202, 422)


@pytest.mark.parametrize("path", ["/dispatch_model", "/dispatch_model?asgi"])
@pytest.mark.parametrize("said", [["no-store", "no-cache"], ["no-cache", "no-store"]])
async def test_a_header_on_several_lines_is_one_header(
    caller: httpx.AsyncClient, server: FakeServer, path: str, said: list[str]
) -> None:
    for lines in ([], [("cache-control", each) for each in said]):
        answer = await caller.post(path, json=ONE, headers=lines)

    assert answer.headers["cache-status"] == "model-dispatcher; fwd=request"
    assert len(server.asked) == 2


@pytest.mark.parametrize("prefer", [["wait=5", "respond-async"], ["respond-async", "wait=5"]])
async def test_preferences_on_several_lines_are_all_heard(
    caller: httpx.AsyncClient, prefer: list[str]
) -> None:
    lines = [("prefer", each) for each in prefer]

    accepted = await caller.post("/jobs", json=ONE, headers=lines)
    found = await caller.get(accepted.headers["location"], headers=lines)

    assert accepted.headers["preference-applied"] == found.headers["preference-applied"] == "wait=5"


async def test_callers_who_meet_are_told_that_they_shared(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.seconds = 0.05

    answers = await asyncio.gather(*(client.post("/dispatch_model", json=ONE) for _ in range(3)))

    assert len(server.asked) == 1
    assert sum("collapsed" in answer.headers["cache-status"] for answer in answers) == 2


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=5", 5),
        ("respond-async, Wait=5", 5),
        ('wait="5"; x=1, handling=lenient', 5),
        ("wait=5, wait=9", 5),
        ("wait=99999999999999999999", 10**20 - 1),
        ("wait=5s", None),
        ("await=5", None),
        ("respond-async", None),
    ],
)
def test_a_preference_to_wait_is_found_among_others(prefer: str, seconds: int | None) -> None:
    assert preferences.wait({b"prefer": prefer.encode()}) == seconds


@pytest.mark.parametrize(
    ("priority", "is_bulk"),
    [
        ("u=5", True),
        ("i, u=7", True),
        ("u=6;x=1", True),
        ("u=4", False),
        ("", False),
        ("u=55", False),
        ("xu=5", False),
    ],
)
def test_less_urgent_work_is_bulk(priority: str, is_bulk: bool) -> None:
    assert preferences.bulk({b"priority": priority.encode()}) is is_bulk
    assert preferences.bulk({}) is False


def test_a_ttl_is_told_in_whole_seconds_and_never_as_over() -> None:
    result = PredictionResult(ModelRef("m", "1"), (1,), 0.0, CacheUse(1, 1, 0.2))

    assert preferences.cache_status(result) == b"model-dispatcher; hit; ttl=1"


@pytest.mark.parametrize(
    "name", ["x-request-timeout", "cache-control", "priority", "prefer", "idempotency-key"]
)
def test_whoever_says_what_is_wanted_is_heard(name: str) -> None:
    assert not preferences.none({name.encode(): b"1"})
