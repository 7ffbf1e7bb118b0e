"""Seams between policies, in gateways that are composed from settings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from application.server import Server
from bootstrap.gateway import Models, assemble
from bootstrap.settings import AdmissionSettings, CachingSettings, ModelSettings, RedisSettings, Settings
from domain.errors import Overloaded
from domain.fleet import ServedModel
from domain.prediction import ModelRef, PredictionRequest, PredictionResult
from tests.fakes import FakeCache, FakeServer
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from domain.prediction import Json

M, N = ModelRef("m"), ModelRef("n")
BOTH = (ServedModel("m", "1.0"), ServedModel("n", "1.0"))


@pytest.fixture(autouse=True)
def _settings_of_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")


def gateway(server: FakeServer, **more: object) -> Models:
    """All policies around one server."""
    chosen = ModelSettings.model_validate({"caching": CachingSettings(), **more})
    servers = [Server("local", "127.0.0.1", 8080, server.predict, server.probe)]
    return assemble(Settings(defaults=chosen), servers, FakeCache())


async def ask(gateway: Models, model: ModelRef, *instances: Json) -> PredictionResult:
    return await gateway.predictions.predict(PredictionRequest(model, instances))


@virtual_time
async def test_ten_thousand_callers_for_one_cold_key_ask_the_model_once() -> None:
    server = FakeServer(seconds=0.5)
    asked = gateway(server)

    answers = await asyncio.gather(*(ask(asked, M, "x") for _ in range(10_000)))

    assert [request.instances for request in server.asked] == [("x",)]
    assert {each.predictions for each in answers} == {("a:m/1.0:x",)}
    assert now() == 0.5


@virtual_time
async def test_the_same_input_to_two_models_is_two_answers() -> None:
    asked = gateway(FakeServer(seconds=0.5, models=BOTH))
    for _ in ("cold", "cached"):
        found = await asyncio.gather(ask(asked, M, "x"), ask(asked, N, "x"))

        assert [each.predictions for each in found] == [("a:m/1.0:x",), ("a:n/1.0:x",)]


@virtual_time
async def test_a_new_version_is_never_answered_from_the_old_ones_cache() -> None:
    server = FakeServer()
    asked = gateway(server)
    old = await ask(asked, M, "x")
    server.models = (ServedModel("m", "1.0", default=False), ServedModel("m", "2.0"))
    await asked.fleet.refresh()

    new, exact = await ask(asked, M, "x"), await ask(asked, ModelRef("m", "1.0"), "x")

    assert (old.predictions, new.predictions) == (("a:m/1.0:x",), ("a:m/2.0:x",))
    assert exact.cache is not None
    assert (exact.predictions, exact.cache.hits) == (old.predictions, 1)


@virtual_time
async def test_a_batch_in_flight_and_the_next_version_do_not_meet() -> None:
    server = FakeServer(seconds=1.0)
    asked = gateway(server)
    old = [asyncio.ensure_future(ask(asked, M, i)) for i in range(3)]
    await asyncio.sleep(0.5)
    server.models = (ServedModel("m", "1.0", default=False), ServedModel("m", "2.0"))
    await asked.fleet.refresh()

    new = await asyncio.gather(*(ask(asked, M, i) for i in range(3)))

    assert [each.predictions for each in await asyncio.gather(*old)] == [(f"a:m/1.0:{i}",) for i in range(3)]
    assert [each.predictions for each in new] == [(f"a:m/2.0:{i}",) for i in range(3)]


@virtual_time
async def test_hits_are_served_even_when_saturated() -> None:
    server = FakeServer()
    asked = gateway(server, batching=False, admission=AdmissionSettings(max_in_flight=1, max_waiting=1))
    await ask(asked, M, "known")
    server.seconds = 1.0
    crowd = [asyncio.ensure_future(ask(asked, M, i)) for i in range(2)]
    await asyncio.sleep(0.1)
    begun = now()

    with pytest.raises(Overloaded):
        await ask(asked, M, "unknown")
    hit = await ask(asked, M, "known")

    assert hit.cache is not None
    assert (hit.cache.hits, now()) == (1, begun)
    await asyncio.gather(*crowd)


@virtual_time
@pytest.mark.parametrize(
    ("batching", "workers", "busy"),
    [({"max_size": 10}, 1, 40), ({"max_size": 5, "per_worker": 3}, 2, 120), (False, 50, 50)],
)
async def test_as_much_is_let_in_from_the_first_as_keeps_all_workers_busy(
    batching: object, workers: int, busy: int
) -> None:
    server = FakeServer(
        seconds=1.0, models=(ServedModel("m", "1.0", workers=workers, workers_ready=workers),)
    )
    asked = gateway(server, batching=batching, admission=AdmissionSettings(max_waiting=0))
    await asked.fleet.refresh()

    told = await asyncio.gather(*(ask(asked, M, i) for i in range(2 * busy)), return_exceptions=True)

    answered = [each for each in told if isinstance(each, PredictionResult)]
    assert len(answered) == busy + 1  # where nobody waits, one always may


@virtual_time
async def test_two_versions_of_a_server_that_names_none_are_each_let_in_within_their_limit() -> None:
    server = FakeServer(seconds=1.0, models=(ServedModel("m", None),))
    asked = gateway(server, batching=False, admission=AdmissionSettings(max_in_flight=1))
    await asked.fleet.refresh()

    callers = [asyncio.ensure_future(ask(asked, ModelRef("m", str(i % 2)), i)) for i in range(20)]
    await asyncio.sleep(0.5)

    assert len(server.asked) == 2
    await asyncio.gather(*callers)


def test_a_lease_is_longer_than_an_attempt_and_ends_in_the_time_of_who_waits_for_a_dead_holder() -> None:
    model = ModelSettings()

    assert model.attempt_timeout < RedisSettings(url="redis://fake").lease < model.timeout
