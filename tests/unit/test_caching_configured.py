"""What is remembered, and for how long, in gateways that are composed from settings."""

from __future__ import annotations

import asyncio

import pytest

from application.server import Server
from bootstrap.gateway import Models, assemble
from bootstrap.settings import CachingSettings, ModelSettings, Settings
from domain.fleet import ServedModel
from domain.prediction import ModelRef, PredictionRequest
from tests.fakes import FakeCache, FakeServer
from tests.virtual_time import virtual_time

ASK = PredictionRequest(ModelRef("m"), ("x",))


@pytest.fixture(autouse=True)
def _settings_of_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")


def gateway(server: FakeServer, caching: CachingSettings | None) -> Models:
    servers = [Server(server.name, "127.0.0.1", 8080, server.predict, server.probe)]
    return assemble(Settings(defaults=ModelSettings(caching=caching)), servers, FakeCache())


@virtual_time
async def test_nothing_is_remembered_of_a_model_that_is_not_configured_to_be() -> None:
    server = FakeServer()
    asked = gateway(server, None)

    results = [await asked.predictions.predict(ASK) for _ in range(2)]

    assert (len(server.asked), [each.cache for each in results]) == (2, [None, None])


@virtual_time
async def test_answers_are_remembered_for_as_long_as_is_configured() -> None:
    server = FakeServer()
    asked = gateway(server, CachingSettings(ttl=5.0))
    await asked.predictions.predict(ASK)

    await asyncio.sleep(4.9)
    await asked.predictions.predict(ASK)
    before = len(server.asked)
    await asyncio.sleep(0.2)
    await asked.predictions.predict(ASK)

    assert (before, len(server.asked)) == (1, 2)


@virtual_time
async def test_an_answer_of_which_nobody_knows_the_version_is_not_remembered() -> None:
    server = FakeServer(models=(ServedModel("m", None),))
    asked = gateway(server, CachingSettings())

    results = [await asked.predictions.predict(ASK) for _ in range(2)]

    assert (len(server.asked), [each.cache for each in results]) == (2, [None, None])
