from __future__ import annotations

import json
import logging
import re
from typing import TYPE_CHECKING

import pytest

from infrastructure.logs import ConsoleFormatter, JsonFormatter

if TYPE_CHECKING:
    import httpx

ASK = {"model_name": "m", "instances": ["a very private text"]}


@pytest.mark.parametrize("path", ["/health/live", "/nowhere", "/dispatch_model"])
async def test_every_answer_names_its_request(client: httpx.AsyncClient, path: str) -> None:
    first, second = await client.get(path), await client.get(path)

    assert re.fullmatch("[0-9a-f]{32}", first.headers["x-request-id"])
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


@pytest.mark.parametrize(
    ("given", "kept"), [("order-17", True), ("x" * 129, False), ("a b", False), ("", False)]
)
async def test_a_callers_plain_request_id_is_kept(client: httpx.AsyncClient, given: str, kept: bool) -> None:
    answer = await client.get("/health/live", headers={"x-request-id": given})

    assert (answer.headers["x-request-id"] == given) is kept


async def test_an_answer_says_where_its_time_went(client: httpx.AsyncClient) -> None:
    answer = await client.post("/dispatch_model", json=ASK)

    timing = answer.headers["server-timing"]
    assert re.fullmatch(r"queue;dur=\d+\.\d\d, server;dur=\d+\.\d\d, total;dur=\d+\.\d\d", timing)


async def test_an_unknown_path_or_method_is_a_problem_too(client: httpx.AsyncClient) -> None:
    unknown, method = await client.get("/nowhere"), await client.get("/dispatch_model")

    assert (unknown.status_code, unknown.json()["title"]) == (404, "Not Found")
    assert (method.status_code, method.headers["allow"]) == (405, "POST")
    assert unknown.headers["content-type"] == method.headers["content-type"] == "application/problem+json"


async def test_a_request_is_logged_without_its_payload_or_query(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dispatcher.access"):
        await client.post("/dispatch_model?token=secret", json=ASK, headers={"x-request-id": "r-1"})

    (record,) = [r for r in caplog.records if r.name == "dispatcher.access"]
    line = json.loads(JsonFormatter().format(record))
    assert line | {"duration_ms": 0, "server_ms": 0, "time": ""} == {
        "time": "", "level": "info", "logger": "dispatcher.access", "message": "request", "request_id": "r-1",
        "client": "127.0.0.1", "method": "POST", "path": "/dispatch_model", "status": 200, "model": "m",
        "duration_ms": 0, "server_ms": 0,
    }  # fmt: skip
    for text in (json.dumps(line), ConsoleFormatter().format(record)):
        assert "private" not in text
        assert "secret" not in text


async def test_each_problem_type_is_a_page_that_explains_it(client: httpx.AsyncClient) -> None:
    problem = (await client.post("/dispatch_model", content=b"{")).json()

    page = await client.get(problem["type"])

    assert page.status_code == 200
    assert problem["title"] in page.text
    assert (await client.get("/problems/nonsense")).status_code == 404
