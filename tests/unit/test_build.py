"""The gateway as `build` wires it: which requests leave it, for which settings."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
import respx

from bootstrap.gateway import build
from bootstrap.settings import JobsSettings, ModelSettings, ServerSettings, Settings
from domain.prediction import ModelRef, PredictionRequest
from tests.unit.torchserve.raw_server import Received, Reply, always, ok, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANAGEMENT = "http://10.0.0.7:8081"
KEYS = {
    "management": {"key": "mng", "expiration time": "2099-01-01T00:00:00Z"},
    "inference": {"key": "inf", "expiration time": "2099-01-01T00:00:00Z"},
    "API": {"key": "api"},
}


@pytest.fixture(autouse=True)
def calm_logs() -> Iterator[None]:
    """`build` takes over the process's logs; tests give them back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.basicConfig(handlers=handlers, level=level, force=True)


@respx.mock
async def test_a_prediction_is_posted_to_protocol_host_port_model_and_version_with_the_servers_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")
    (tmp_path / "key_file.json").write_text(json.dumps(KEYS))
    respx.route(host="127.0.0.1").pass_through()
    respx.get(f"{MANAGEMENT}/models").respond(json={"models": [{"modelName": "m", "modelUrl": "m.mar"}]})
    respx.get(f"{MANAGEMENT}/models/m/all").respond(
        json=[{"modelVersion": "3.1", "workers": [{"status": "READY"}]}]
    )
    async with serving(always(ok(b'{"predictions": [1, 2]}'))) as server:
        configured = ServerSettings(
            url=server.url, management_url=MANAGEMENT, key_file=tmp_path / "key_file.json"
        )
        settings = Settings(servers={"a": configured}, jobs=JobsSettings(path=tmp_path / "jobs.sqlite"))
        async with build(settings) as gateway:
            result = await gateway.predictions.predict(PredictionRequest(ModelRef("m"), ("x", "y")))

    assert (result.model, result.predictions) == (ModelRef("m", "3.1"), (1, 2))
    sent = server.received[-1]
    assert sent.line == "POST /predictions/m/3.1 HTTP/1.1"
    assert sent.headers["host"] == server.url.removeprefix("http://")
    assert sent.json == {"instances": ["x", "y"]}
    assert sent.headers["authorization"] == "Bearer inf"
    assert {
        call.request.headers["authorization"] for call in respx.calls if call.request.url.port == 8081
    } == {"Bearer mng"}


async def test_a_server_without_management_and_keys_serves_what_is_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")

    async def echo(request: Received) -> Reply:
        return ok(request.body)

    async with serving(echo) as server:
        settings = Settings(
            servers={"a": ServerSettings(url=server.url)},
            models={"m": ModelSettings(payload="body")},
            jobs=JobsSettings(path=tmp_path / "jobs.sqlite"),
        )
        async with build(settings) as gateway:
            result = await gateway.predictions.predict(PredictionRequest(ModelRef("m"), ("x", {"y": 1})))

    assert result.predictions == ("x", {"y": 1})
    predictions = [r for r in server.received if r.line.startswith("POST /predictions/m ")]
    assert sorted(r.body for r in predictions) == [b'"x"', b'{"y":1}']
    assert not [r for r in server.received if "authorization" in r.headers]
