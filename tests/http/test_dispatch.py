from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from application.pipeline import Pipeline
from domain.errors import InputRejectedByModel, ServerBusy, ServerFault, ServerTimeout, ServerUnreachable
from domain.prediction import PredictionResult, Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx
    from fastapi import FastAPI

    from domain.errors import DispatchError
    from domain.prediction import PredictionRequest
    from tests.fakes import FakeServer

ASK = {"model_name": "m", "instances": ["x"]}


@pytest.mark.parametrize("path", ["/dispatch_model", "/dispatch_model/"])
async def test_predictions_come_back_in_order_with_the_version_that_answered(
    client: httpx.AsyncClient, path: str
) -> None:
    answer = await client.post(path, json={"model_name": "m", "instances": ["x", {"y": 1}]})

    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {
        "model_name": "m",
        "model_version": "1.0",
        "predictions": ["a:m/1.0:x", "a:m/1.0:{'y': 1}"],
    }


async def test_the_request_reaches_the_server_as_it_was_sent(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    instances: list[Any] = [
        None,
        True,
        0,
        -0.5,
        1e308,
        12345678901234567890123,
        "ü\u0000",
        [],
        {},
        [[{"a": None}]],
    ]

    await client.post("/dispatch_model", json=ASK | {"instances": instances, "parameters": {"k": [1]}})

    assert server.asked[0].instances == tuple(instances)
    assert server.asked[0].parameters == {"k": [1]}


@pytest.mark.parametrize(
    ("body", "status", "pointer"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"model_name": "\xc3\x28", "instances": [1]}', 400, None),
        (rb'{"model_name": "\ud800", "instances": [1]}', 400, None),
        (b'{"model_name": "m", "instances": [NaN]}', 422, "#/instances/0"),
        (b'{"model_name": "m", "instances": [1, {"a/b": -Infinity}]}', 422, "#/instances/1/a~1b"),
        (b'{"model_name": "m", "instances": [1e999]}', 422, "#/instances/0"),
        (b'{"model_name": "m", "instances": [1' + b"0" * 250 + b"e99]}", 422, "#/instances/0"),
        (b'{"model_name": "m", "instances": ' + b"[" * 4000 + b"]" * 4000 + b"}", 422, "#"),
        (b"[]", 422, "#"),
        (b'"text"', 422, "#"),
        (b"{}", 422, "#/model_name"),
        (b'{"model_name": "m"}', 422, "#/instances"),
        (b'{"model_name": 1, "instances": [1]}', 422, "#/model_name"),
        (b'{"model_name": "", "instances": [1]}', 422, "#/model_name"),
        (b'{"model_name": "m", "instances": []}', 422, "#/instances"),
        (b'{"model_name": "m", "instances": "x"}', 422, "#/instances"),
        (b'{"model_name": "m", "instances": {"a": 1}}', 422, "#/instances"),
        (b'{"model_name": "m", "instances": [1,1,1,1,1,1,1,1,1,1,1]}', 422, "#/instances"),
        (b'{"model_name": "m", "model_version": 1.0, "instances": [1]}', 422, "#/model_version"),
        (b'{"model_name": "m", "instances": [1], "parameters": [1]}', 422, "#/parameters"),
        (b'{"model_name": "m", "instances": [1], "port": "80"}', 422, "#/port"),
        (b'{"model_name": "m", "instances": [1], "port": 0}', 422, "#/port"),
        (b'{"model_name": "m", "instances": [1], "port": true}', 422, "#/port"),
        (b'{"model_name": "m", "instances": [1], "nonsense/~ ": 1}', 422, "#/nonsense~1~0%20"),
        (b'{"model_name": "m", "instances": [1], "host": "evil.example"}', 422, "#/host"),
        (b'{"model_name": "m", "instances": [1], "port": 8081}', 422, "#/port"),
    ],
)
async def test_bad_input_is_a_clear_error_and_reaches_no_server(
    client: httpx.AsyncClient, server: FakeServer, body: bytes, status: int, pointer: str | None
) -> None:
    answer = await client.post("/dispatch_model", content=body)

    problem = answer.json()
    assert answer.status_code == problem["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert [each["pointer"] for each in problem.get("errors", [])][:1] == ([pointer] if pointer else [])
    assert problem["instance"] == answer.headers["x-request-id"]
    assert server.asked == []


async def test_a_body_with_many_errors_is_not_answered_with_a_book(client: httpx.AsyncClient) -> None:
    answer = await client.post("/dispatch_model", json=ASK | {f"extra{i}": 1 for i in range(500)})

    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 20


async def test_the_host_and_port_of_a_configured_server_are_accepted(client: httpx.AsyncClient) -> None:
    answer = await client.post("/dispatch_model", json=ASK | {"host": "127.0.0.1", "port": 8080})

    assert answer.status_code == 200


async def test_a_body_that_says_it_is_too_large_is_refused_unread(client: httpx.AsyncClient) -> None:
    async def never() -> Any:
        yield pytest.fail("the body was read")

    answer = await client.post("/dispatch_model", content=never(), headers={"content-length": "10001"})

    assert answer.status_code == 413


async def test_a_body_that_grows_too_large_is_refused_before_its_end(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1000
            yield b"x" * 1000

    answer = await client.post("/dispatch_model", content=endless())

    assert answer.status_code == 413
    assert answer.json()["type"] == "/problems/payload-too-large"
    assert answer.headers["connection"] == "close"  # what remains is not read
    assert sent <= 12_000


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        ({"model_name": "nope"}, "/problems/model-not-found"),
        ({"model_name": "../../admin"}, "/problems/model-not-found"),
        ({"model_version": "9"}, "/problems/version-not-found"),
    ],
)
async def test_what_is_not_served_is_not_found(
    client: httpx.AsyncClient, server: FakeServer, ask: dict[str, str], kind: str
) -> None:
    answer = await client.post("/dispatch_model", json=ASK | ask)

    assert (answer.status_code, answer.json()["type"]) == (404, kind)
    assert "Served: " in answer.json()["detail"]
    assert server.asked == []


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ServerUnreachable(), 502),
        (ServerTimeout(), 504),
        (ServerBusy(), 503),
        (ServerFault(), 502),
        (InputRejectedByModel("no", code=400), 400),
        (InputRejectedByModel("no", code=418), 418),
        (InputRejectedByModel("no", code=429), 429),
    ],
)
async def test_each_failure_of_a_server_has_its_status(
    client: httpx.AsyncClient, server: FakeServer, error: DispatchError, status: int
) -> None:
    server.error = error

    answer = await client.post("/dispatch_model", json=ASK)

    assert answer.status_code == answer.json()["status"] == status
    assert answer.json()["error"] == answer.json()["detail"] == str(error)
    assert ("retry-after" in answer.headers) is (status in {429, 503})


async def test_without_a_server_the_caller_is_told_to_come_back(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.probe_error = ServerUnreachable("connection refused")

    answer = await client.post("/dispatch_model", json=ASK)

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "local: connection refused" in answer.json()["detail"]


async def test_refused_instances_are_pointed_at(client: httpx.AsyncClient, server: FakeServer) -> None:
    async def picky(request: PredictionRequest) -> PredictionResult:
        return PredictionResult(request.model, ("fine", Refusal(422, "The text is empty.")))

    server.predict = picky  # type: ignore[method-assign]
    app: FastAPI = client._transport.app  # type: ignore[attr-defined]
    app.state.gateway.predictions._make_pipeline = lambda _: Pipeline(picky)

    answer = await client.post("/dispatch_model", json=ASK | {"instances": ["fine", ""]})

    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"detail": "The text is empty.", "pointer": "#/instances/1"}]


async def test_a_failure_of_our_own_says_nothing_of_its_cause(
    client: httpx.AsyncClient, server: FakeServer
) -> None:
    server.error = RuntimeError("secret-host:8080")  # type: ignore[assignment]

    answer = await client.post("/dispatch_model", json=ASK)

    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal-error")
    assert "secret" not in answer.text


@pytest.mark.parametrize("header", ["0", "-1", "nan", "inf", "soon", ""])
async def test_a_timeout_that_is_no_number_of_seconds_is_refused(
    client: httpx.AsyncClient, header: str
) -> None:
    answer = await client.post("/dispatch_model", json=ASK, headers={"x-request-timeout": header})

    assert answer.status_code == 422


async def test_a_body_that_does_not_arrive_in_time_is_not_waited_for(client: httpx.AsyncClient) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    answer = await client.post("/dispatch_model", content=stuck(), headers={"x-request-timeout": "0.05"})

    assert (answer.status_code, answer.json()["detail"]) == (504, "The body did not arrive in time.")


async def test_the_callers_timeout_is_kept(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.seconds = 60

    answer = await client.post("/dispatch_model", json=ASK, headers={"x-request-timeout": "0.5"})

    assert (answer.status_code, answer.json()["type"]) == (504, "/problems/deadline-exceeded")
    assert server.cancelled == 1


async def test_a_caller_who_leaves_cancels_what_nobody_else_waits_for(
    app: FastAPI, server: FakeServer
) -> None:
    server.seconds = 60
    sent: list[Any] = []
    asked = asyncio.Event()

    async def receive() -> dict[str, Any]:
        if not asked.is_set():
            asked.set()
            return {"type": "http.request", "body": b'{"model_name": "m", "instances": ["x"]}'}
        while not server.asked:  # noqa: ASYNC110  (the fake has no event for it, and this is its loop)
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/dispatch_model", "raw_path": b"/dispatch_model",
        "query_string": b"", "headers": [], "client": ("127.0.0.1", 1), "root_path": "", "scheme": "http",
    }  # fmt: skip
    async with asyncio.timeout(5):
        await app(scope, receive, send)

    assert server.cancelled == 1
    assert sent[0]["status"] == 499
