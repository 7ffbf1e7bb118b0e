"""What is answered without waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from application.pipeline import Pipeline
from application.policies.caching import Caching
from application.prediction_service import PredictionService
from application.recall import Pinned, Recall
from domain.fingerprint import fingerprints
from domain.fleet import ServedModel
from domain.prediction import CacheControl, ModelRef, PredictionRequest, PredictionResult, ServerAddress
from infrastructure.memory_cache import MemoryCache
from tests.fakes import FakeServer, fleet_of
from tests.virtual_time import virtual_time

if TYPE_CHECKING:
    from application.fleet import Fleet

M = ModelRef("m")


def service(fleet: Fleet, server: FakeServer, *, recalls: bool = True) -> PredictionService:
    cache = MemoryCache(1_000_000)
    pipeline = Pipeline(Caching(server.predict, cache=cache, ttl=60.0), Recall(cache) if recalls else None)
    return PredictionService(fleet, lambda _: pipeline)


@virtual_time
async def test_what_is_remembered_is_recalled_as_the_pipeline_would_say_it() -> None:
    server = FakeServer()
    asked = service(fleet_of(server), server)
    one, both = PredictionRequest(M, ("x",)), PredictionRequest(M, ("x", "y", "x"))
    for request in (one, both):
        await asked.predict(request)

    for request in (one, both):
        recalled, said = asked.recall(request), await asked.predict(request)
        assert isinstance(recalled, PredictionResult)
        assert (recalled.model, recalled.predictions) == (said.model, said.predictions)
        assert recalled.cache is not None
        assert said.cache is not None
        assert (recalled.cache.hits, recalled.cache.of) == (said.cache.hits, said.cache.of)


@virtual_time
@pytest.mark.parametrize(
    "request_",
    [
        PredictionRequest(M, ("x", "new")),
        PredictionRequest(M, ("x",), cache=CacheControl(read=False)),
        PredictionRequest(M, ("x",), {"other": 1}),
        PredictionRequest(M, ("x",), partition="other"),
        PredictionRequest(M, ("x",), server=ServerAddress(port=8080)),
        PredictionRequest(ModelRef("m", "2.0"), ("x",)),
        PredictionRequest(ModelRef("nope"), ("x",)),
    ],
)
async def test_what_is_not_known_at_once_is_left_to_the_pipeline(request_: PredictionRequest) -> None:
    server = FakeServer(models=(ServedModel("m", "1.0"), ServedModel("m", "2.0", default=False)))
    asked = service(fleet_of(server), server)
    await asked.predict(PredictionRequest(M, ("x",)))

    assert isinstance(asked.recall(request_), PredictionRequest)


@virtual_time
async def test_what_goes_on_to_the_pipeline_is_the_same_question() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    await fleet.refresh()
    asked = service(fleet, server)
    request = PredictionRequest(M, ("x", "y"), {"k": 1}, deadline=9.0, partition="p", bulk=True)

    rest = asked.recall(request)

    assert isinstance(rest, PredictionRequest)
    resolved = ModelRef("m", "1.0")
    assert rest == Pinned.of(request, resolved, fingerprints(request.to(resolved)))


@virtual_time
async def test_another_default_version_is_not_recalled_from_the_old_one() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    asked = service(fleet, server)
    await asked.predict(PredictionRequest(M, ("x",)))

    server.models = (ServedModel("m", "1.0", default=False), ServedModel("m", "2.0"))
    await fleet.refresh()

    assert isinstance(asked.recall(PredictionRequest(M, ("x",))), PredictionRequest)


@virtual_time
async def test_without_a_memory_nothing_is_recalled() -> None:
    server = FakeServer()
    asked = service(fleet_of(server), server, recalls=False)
    await asked.predict(PredictionRequest(M, ("x",)))

    assert isinstance(asked.recall(PredictionRequest(M, ("x",))), PredictionRequest)
