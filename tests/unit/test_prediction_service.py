from __future__ import annotations

import asyncio

import pytest

from application.pipeline import Pipeline
from application.prediction_service import PredictionService
from domain.errors import InputRejectedByModel, InvalidRequest, ModelNotFound
from domain.fleet import ServedModel
from domain.prediction import ModelRef, PredictionRequest, PredictionResult, Refusal, ServerAddress
from tests.fakes import FakeServer, fleet_of
from tests.virtual_time import virtual_time

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
