"""The composition: what the settings say is what a request meets."""

from __future__ import annotations

import pytest

from application.server import Server
from bootstrap.gateway import Models, assemble
from bootstrap.pipeline import policy_names
from bootstrap.settings import HealthSettings, HttpSettings, ModelSettings, ServerSettings, Settings
from domain.errors import DeadlineExceeded, ServerTimeout
from domain.prediction import ModelRef, PredictionRequest
from tests.fakes import FakeCache, FakeServer
from tests.virtual_time import now, virtual_time

ASK = PredictionRequest(ModelRef("m"), ("x",))


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")
    return Settings(
        servers={"local": ServerSettings(url="http://127.0.0.1:8080")},
        models={"m": ModelSettings(timeout=10.0, attempt_timeout=3.0, canary="hello")},
        http=HttpSettings(max_timeout=5.0),
        health=HealthSettings(canary_timeout=1.0),
    )


def gateway(settings: Settings, server: FakeServer) -> Models:
    return assemble(settings, [Server("local", "127.0.0.1", 8080, server.predict, server.probe)], FakeCache())


@virtual_time
async def test_one_attempt_gets_the_time_of_one_attempt(settings: Settings) -> None:
    server = FakeServer()
    predictions = gateway(settings, server).predictions
    await predictions.predict(ASK)
    server.seconds = 60.0
    begun = now()

    with pytest.raises(ServerTimeout):
        await predictions.predict(ASK)

    assert now() - begun == 3.0


@virtual_time
async def test_no_caller_gets_more_than_the_cap(settings: Settings) -> None:
    server = FakeServer()
    patient = settings.model_copy(update={"models": {"m": ModelSettings(timeout=10.0, attempt_timeout=60.0)}})
    predictions = gateway(patient, server).predictions
    await predictions.predict(ASK)
    server.seconds = 60.0
    begun = now()

    with pytest.raises(DeadlineExceeded):
        await predictions.predict(PredictionRequest(ModelRef("m"), ("x",), deadline=now() + 50))

    assert now() - begun == 5.0


@virtual_time
async def test_a_model_is_ready_when_it_answers_its_canary(settings: Settings) -> None:
    server = FakeServer()
    assert (await gateway(settings, server).health.check()).ready
    assert [request.instances for request in server.asked] == [("hello",)]

    wedged = gateway(settings, FakeServer(seconds=60.0))
    await wedged.fleet.refresh()
    assert not (await wedged.health.check()).ready


def test_the_policies_are_told_as_they_are_composed(settings: Settings) -> None:
    assert policy_names(settings, "m") == (
        "Deadline(default=10, cap=5)",
        "Coalescing()",
        "Admission(max_in_flight=2000, max_waiting=5000, bulk_share=0.1)",
        "Batching(max_size=32, per_worker=1)",
        "Balancing(servers=1)",
        "AttemptTimeout(seconds=3)",
    )
