from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import TYPE_CHECKING

import pytest

from domain.events import AttemptFailed, ModelFailing, ServerFound, ServerLost
from domain.prediction import ModelRef
from infrastructure.logs import ConsoleFormatter, JsonFormatter, configure, log_event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tests.fakes import FakeServer

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


@pytest.mark.parametrize("path", ["/dispatch_model", "/jobs", "/api/predict/"])
async def test_a_body_that_does_not_come_in_time_is_not_waited_for(
    caller: httpx.AsyncClient, path: str
) -> None:
    async def late() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.5)
        yield b"}"

    answer = await caller.post(path, content=late(), headers={"x-request-timeout": "0.05"})

    assert (answer.status_code, answer.json()["type"]) == (504, "/problems/deadline-exceeded")


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


async def test_a_failure_of_our_own_is_logged_with_its_cause_under_the_requests_id(
    client: httpx.AsyncClient, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.error = RuntimeError("the cause")  # type: ignore[assignment]

    answer = await client.post("/dispatch_model", json=ASK, headers={"x-request-id": "r-1"})

    assert answer.status_code == 500
    (record,) = [r for r in caplog.records if r.name == "dispatcher.failure"]
    for line in (JsonFormatter().format(record), ConsoleFormatter().format(record)):
        assert "r-1" in line
        assert "RuntimeError: the cause" in line


async def test_no_caller_can_forge_a_line_of_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "dispatcher.access"):
        await client.get("/%0a12:00:00%20critical%20%1b[31mserver%20lost" + "x" * 1000)

    (record,) = [r for r in caplog.records if r.name == "dispatcher.access"]
    for line in (JsonFormatter().format(record), ConsoleFormatter().format(record)):
        assert "\n" not in line
        assert "\x1b" not in line
        assert len(line) < 600


@pytest.mark.parametrize("path", ["/", "/models", "/health/ready", "/docs"])
async def test_where_get_is_answered_head_is_too(client: httpx.AsyncClient, path: str) -> None:
    head, get = await client.head(path), await client.get(path)

    assert head.status_code == get.status_code < 400


def test_the_log_can_be_without_access_lines() -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure("json", "warning", access=False)
        assert logging.getLogger("dispatcher.access").disabled
        configure("console", "info", access=True)
        assert not logging.getLogger("dispatcher.access").disabled
        assert isinstance(root.handlers[0].formatter, ConsoleFormatter)
    finally:
        logging.basicConfig(handlers=handlers, level=level, force=True)


def test_what_happens_to_the_fleet_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    model = ModelRef("m", "1.0")
    with caplog.at_level(logging.INFO, "dispatcher"):
        for event in (
            ServerFound("a", ("m",)),
            ServerLost("a", "gone"),
            ModelFailing("a", model, "late"),
            AttemptFailed("a", model, "late"),
        ):
            log_event(event)

    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [(line["level"], line["message"]) for line in lines] == [
        ("info", "server found"),
        ("error", "server lost"),
        ("error", "model failing"),
        ("warning", "attempt failed"),
    ]
    assert {line["server"] for line in lines} == {"a"}
