"""Bodies that are compressed: nothing is unpacked here, and whoever sends one is told so."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tests.fakes import FakeServer

LINES = {"content-type": "application/x-ndjson"}
BULK = "/jobs?model_name=m"
ROUTES = [
    ("/dispatch_model", b'{"model_name": "m", "instances": ["x"]}', {}),
    ("/dispatch_model?asgi", b'{"model_name": "m", "instances": ["x"]}', {}),
    ("/api/predict/", b'{"text": "x"}', {}),
    ("/api/predict?asgi", b'{"text": "x"}', {}),
    ("/jobs", b'{"model_name": "m", "instances": ["x"]}', {}),
    ("/jobs", b'"x"', LINES),
    (BULK, b'"x"', LINES),
]


@pytest.mark.parametrize(("path", "text", "headers"), ROUTES)
async def test_a_compressed_body_is_refused_as_such(
    caller: httpx.AsyncClient, server: FakeServer, path: str, text: bytes, headers: dict[str, str]
) -> None:
    headers = headers | {"content-encoding": "gzip", "x-request-id": "r-1"}

    answer = await caller.post(path, content=gzip.compress(text), headers=headers)

    assert (answer.status_code, answer.headers["content-type"]) == (415, "application/problem+json")
    assert (answer.json()["type"], answer.json()["instance"]) == ("/problems/encoding-not-supported", "r-1")
    assert answer.headers["accept-encoding"] == "identity"
    assert "connection" not in answer.headers
    assert server.asked == []


@pytest.mark.parametrize("said", [["br"], ["GZIP"], ["identity, gzip"], ["identity", "zstd"], ["zstd", ""]])
@pytest.mark.parametrize("path", ["/api/predict", "/api/predict?asgi"])
async def test_whatever_the_encoding_is_called(caller: httpx.AsyncClient, path: str, said: list[str]) -> None:
    lines = [("content-encoding", each) for each in said]

    answer = await caller.post(path, json={"text": "x"}, headers=lines)

    assert answer.status_code == 415


@pytest.mark.parametrize("said", ["identity", "Identity ,identity", ""])
@pytest.mark.parametrize(
    ("path", "text", "headers"), [each for each in ROUTES if each[:2] != ("/jobs", b'"x"')]
)
async def test_a_body_as_it_is_may_be_called_that(
    caller: httpx.AsyncClient, path: str, text: bytes, headers: dict[str, str], said: str
) -> None:
    answer = await caller.post(path, content=text, headers=headers | {"content-encoding": said})

    assert answer.status_code in {200, 202}


@pytest.mark.parametrize("path", ["/dispatch_model", BULK])
async def test_who_is_refused_may_go_on_with_the_connection(caller: httpx.AsyncClient, path: str) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield b"x" * 1_000

    headers = LINES if path == BULK else {}
    refused = await caller.post(path, content=body(), headers=headers | {"content-encoding": "gzip"})
    streams = [refused.extensions["network_stream"]]
    good = await caller.post("/api/predict", json={"text": "x"})

    assert (refused.status_code, good.status_code) == (415, 200)
    assert good.extensions["network_stream"] in streams


async def test_a_compressed_body_that_is_too_large_is_that_first(caller: httpx.AsyncClient) -> None:
    headers = {"content-encoding": "gzip"}

    answer = await caller.post("/dispatch_model", content=b"x" * 20_000, headers=headers)

    assert answer.status_code == 413
