"""What callers ask for in headers, and what the cache answers."""

from __future__ import annotations

import asyncio
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


async def test_callers_who_meet_are_told_that_they_shared(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.seconds = 0.05

    answers = await asyncio.gather(*(client.post("/dispatch_model", json=ONE) for _ in range(3)))

    assert len(server.asked) == 1
    assert sum("collapsed" in answer.headers["cache-status"] for answer in answers) == 2


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
