from __future__ import annotations

import asyncio
import random

import pytest

from application.pipeline import Pipeline
from application.policies.balancing import Balancing
from application.prediction_service import UNVERIFIED, PredictionService
from application.recall import Recall
from domain.errors import (
    InputRejectedByModel,
    InvalidRequest,
    ModelNotFound,
    NoServerAvailable,
    VersionNotFound,
)
from domain.fleet import ServedModel
from domain.prediction import ModelRef, PredictionRequest, PredictionResult, Refusal, ServerAddress
from infrastructure.memory_cache import MemoryCache
from tests.fakes import FakeServer, fleet_of
from tests.virtual_time import now, virtual_time

ASK = PredictionRequest(ModelRef("m"), ("x",))


def service(server: FakeServer, made: list[ModelRef] | None = None) -> PredictionService:
    def pipeline(model: ModelRef) -> Pipeline:
        (made if made is not None else []).append(model)
        return Pipeline(server.predict)

    return PredictionService(fleet_of(server), pipeline)


@virtual_time
async def test_the_answer_names_the_version_that_gave_it() -> None:
    result = await service(FakeServer()).predict(ASK)

    assert (result.model, result.predictions) == (ModelRef("m", "1.0"), ("a:m/1.0:x",))


@virtual_time
async def test_each_version_has_one_pipeline_of_its_own() -> None:
    made: list[ModelRef] = []
    both = FakeServer(models=(ServedModel("m", "1.0"), ServedModel("m", "2.0", default=False)))
    predict = service(both, made).predict

    for version in (None, "1.0", "2.0", "2.0"):
        await predict(PredictionRequest(ModelRef("m", version), ("x",)))

    assert made == [ModelRef("m", "1.0"), ModelRef("m", "2.0")]


@virtual_time
async def test_a_model_registered_a_moment_ago_is_found() -> None:
    server = FakeServer()
    predict = service(server).predict
    await predict(ASK)
    server.models += (ServedModel("new", "1.0"),)
    probed = server.probed

    with pytest.raises(ModelNotFound):
        await predict(PredictionRequest(ModelRef("new"), ("x",)))
    assert server.probed == probed
    await asyncio.sleep(1.0)

    assert (await predict(PredictionRequest(ModelRef("new"), ("x",)))).model == ModelRef("new", "1.0")


@virtual_time
async def test_pipelines_of_versions_that_are_gone_are_dropped() -> None:
    made: list[ModelRef] = []
    server = FakeServer()
    predictions = service(server, made)
    await predictions.predict(ASK)
    server.models = (ServedModel("m", "2.0"),)
    await predictions._fleet.refresh()

    await predictions.predict(ASK)

    assert list(predictions._pipelines) == [ModelRef("m", "2.0")]


@virtual_time
async def test_versions_of_a_server_that_cannot_be_asked_for_them_keep_a_pipeline_each() -> None:
    made: list[ModelRef] = []
    predict = service(FakeServer(models=(ServedModel("m", None),)), made).predict

    for version in (None, "1.0", "2.0") * 3:
        await predict(PredictionRequest(ModelRef("m", version), ("x",)))

    assert made == [ModelRef("m"), ModelRef("m", "1.0"), ModelRef("m", "2.0")]


@virtual_time
async def test_versions_that_callers_invent_keep_no_pipeline() -> None:
    server = FakeServer(models=(ServedModel("m", None),))
    predictions = service(server)
    await predictions.predict(ASK)
    server.error = VersionNotFound()
    for i in range(3):
        with pytest.raises(VersionNotFound):
            await predictions.predict(PredictionRequest(ModelRef("m", f"none{i}"), ("x",)))

    assert list(predictions._pipelines) == [ModelRef("m")]


@virtual_time
async def test_so_many_pipelines_are_kept_of_versions_that_nobody_vouches_for_and_the_latest() -> None:
    predictions = service(FakeServer(models=(ServedModel("m", None),)))
    await predictions.predict(ASK)

    for i in range(UNVERIFIED + 9):
        await predictions.predict(PredictionRequest(ModelRef("m", str(i)), ("x",)))

    versions = [ModelRef("m", str(i)) for i in range(9, UNVERIFIED + 9)]
    assert list(predictions._pipelines) == [ModelRef("m"), *versions]


# --- a version that is gone


class Rolling(FakeServer):
    """Has version 1.0, and once it is updated 2.0 alone."""

    def update(self) -> None:
        self.models = (ServedModel("m", "2.0"),)

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        result = await super().predict(request)
        if request.model.version not in {each.version for each in self.models}:
            raise VersionNotFound
        return result


def rolling(server: Rolling) -> PredictionService:
    """With a memory, through Balancing, as that is where a version is found to be gone."""
    fleet, memory = fleet_of(server), MemoryCache(1_000_000)

    def pipeline(_model: ModelRef) -> Pipeline:
        balancing = Balancing(
            fleet, attempt=lambda inner: inner, observe=lambda _: None, clock=now, pick=random.sample
        )
        return Pipeline(balancing, Recall(memory))

    return PredictionService(fleet, pipeline)


@virtual_time
@pytest.mark.parametrize("pause", [0.0, 60.0])
async def test_who_named_no_version_is_answered_by_the_new_one_when_the_old_one_is_gone(
    pause: float,
) -> None:
    server = Rolling()
    asked = rolling(server)
    await asked.predict(ASK)
    await asyncio.sleep(pause)
    server.update()

    answers = await asyncio.gather(*(asked.predict(ASK) for _ in range(100)))

    assert {each.model for each in answers} == {ModelRef("m", "2.0")}
    assert server.probed == 2


@virtual_time
async def test_who_looked_into_memory_first_has_still_named_no_version() -> None:
    server = Rolling()
    asked = rolling(server)
    await asked.predict(ASK)
    known = asked.recall(ASK)
    assert isinstance(known, PredictionRequest)
    assert known.fingerprints
    server.update()

    assert await asked.remembered(known) is None
    assert (await asked.predict(known)).model == ModelRef("m", "2.0")


@virtual_time
async def test_who_looked_into_memory_first_and_waited_for_the_update_is_asked_of_the_new_version() -> None:
    server = Rolling()
    asked = rolling(server)
    await asked.predict(ASK)
    known = asked.recall(ASK)
    assert isinstance(known, PredictionRequest)
    server.update()
    await asked._fleet.refresh()

    result = await asked.predict(known)

    assert (result.model, server.asked[-1].fingerprints) == (ModelRef("m", "2.0"), ())


@virtual_time
async def test_who_waited_while_the_fleet_was_told_of_the_update_is_asked_again_of_the_new_version() -> None:
    server = FakeServer()
    fleet = fleet_of(server)
    old = []

    async def late(request: PredictionRequest) -> PredictionResult:
        if request.model.version == "2.0":
            return await server.predict(request)
        old.append(request)
        server.models = (ServedModel("m", "2.0"),)
        await fleet.refresh()
        raise NoServerAvailable

    result = await PredictionService(fleet, lambda _: Pipeline(late)).predict(ASK)

    assert (result.model, len(old)) == (ModelRef("m", "2.0"), 1)


@virtual_time
async def test_who_named_the_version_that_is_gone_is_told_so() -> None:
    server = Rolling()
    asked = rolling(server)
    exact = PredictionRequest(ModelRef("m", "1.0"), ("x",))
    await asked.predict(exact)
    server.update()

    with pytest.raises(VersionNotFound):
        await asked.predict(exact)

    assert server.probed == 1


@virtual_time
async def test_where_no_server_is_left_nobody_is_asked_twice() -> None:
    server = FakeServer(error=NoServerAvailable())

    with pytest.raises(NoServerAvailable):
        await service(server).predict(ASK)

    assert len(server.asked) == 1


@virtual_time
async def test_nobody_waits_longer_than_allowed_for_servers_to_say_what_they_serve() -> None:
    class Slow(FakeServer):
        async def probe(self) -> tuple[ServedModel, ...]:
            await asyncio.sleep(60.0)
            return self.models

    with pytest.raises(NoServerAvailable):
        await service(Slow()).predict(PredictionRequest(ModelRef("m"), ("x",), deadline=0.1))

    assert now() == pytest.approx(0.1)


@virtual_time
async def test_a_host_that_is_not_configured_is_refused_and_nothing_is_asked() -> None:
    server = FakeServer()
    evil = PredictionRequest(ModelRef("m"), ("x",), server=ServerAddress("169.254.169.254", 80))

    with pytest.raises(InvalidRequest) as refusal:
        await service(server).predict(evil)

    assert [error.pointer for error in refusal.value.errors] == ["/host", "/port"]
    assert (server.asked, server.probed) == ([], 0)


@virtual_time
async def test_refused_instances_are_pointed_at() -> None:
    class Picky(FakeServer):
        async def predict(self, request: PredictionRequest) -> PredictionResult:
            return PredictionResult(request.model, ("fine", Refusal(422, "empty"), Refusal(413, "long")))

    with pytest.raises(InputRejectedByModel) as refusal:
        await service(Picky()).predict(PredictionRequest(ModelRef("m"), ("a", "", "b" * 9)))

    assert str(refusal.value) == "The model refused 2 of 3 instances."
    assert [(e.pointer, e.detail) for e in refusal.value.errors] == [
        ("/instances/1", "empty"),
        ("/instances/2", "long"),
    ]
    assert refusal.value.code == 422
