from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from application.pipeline import Pipeline
from application.policies.caching import Caching
from application.prediction_service import PredictionService
from application.recall import Lookup
from domain.errors import InputRejectedByModel, ServerFault
from domain.fingerprint import fingerprints
from domain.fleet import ServedModel
from domain.prediction import (
    CacheControl,
    CacheUse,
    Json,
    ModelRef,
    PredictionRequest,
    PredictionResult,
    Refusal,
)
from tests.fakes import FakeCache, FakeServer, fleet_of
from tests.virtual_time import virtual_time

M = ModelRef("m", "1.0")
ASK = PredictionRequest(M, ("x",))
TEN = PredictionRequest(M, tuple(range(10)))


class Picky(FakeServer):
    """Refuses what is not a string."""

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        result = await super().predict(request)
        pairs = zip(request.instances, result.predictions, strict=True)
        checked = tuple(p if isinstance(i, str) else Refusal(422, f"not {i}") for i, p in pairs)
        return replace(result, predictions=checked)


def caching(server: FakeServer, cache: FakeCache | None = None) -> Caching:
    return Caching(server.predict, cache=cache or FakeCache(), ttl=60.0)


@virtual_time
async def test_a_hit_asks_no_model() -> None:
    server = FakeServer()
    predict = caching(server)
    first = await predict(ASK)

    second = await predict(ASK)

    assert len(server.asked) == 1
    assert second.predictions == first.predictions == ("a:m/1.0:x",)
    assert (second.model, second.server_seconds) == (M, 0.0)


@virtual_time
async def test_what_is_remembered_is_forgotten_after_its_time() -> None:
    server = FakeServer()
    predict = caching(server)
    await predict(ASK)

    await asyncio.sleep(59.9)
    await predict(ASK)
    assert len(server.asked) == 1
    await asyncio.sleep(0.1)
    await predict(ASK)

    assert len(server.asked) == 2


@virtual_time
async def test_of_ten_instances_of_which_nine_are_known_one_is_asked_for_and_all_come_back_in_order() -> None:
    server = FakeServer()
    predict = caching(server)
    await predict(replace(TEN, instances=(9, 8, 7, 6, 5, 3, 2, 1, 0)))

    result = await predict(TEN)

    assert server.asked[1].instances == (4,)
    assert result.predictions == tuple(f"a:m/1.0:{i}" for i in range(10))
    assert result.cache == CacheUse(hits=9, of=10, ttl=60.0, stored=True)


@virtual_time
@pytest.mark.parametrize("instances", [("new", "x"), ("x", "new"), ("new", "new"), ("x", "new", "newer")])
async def test_a_request_whose_fingerprints_are_known_is_answered_alike(instances: tuple[str, ...]) -> None:
    server = FakeServer()
    predict = caching(server)
    await predict(ASK)
    request = replace(ASK, instances=instances)

    result = await predict(request.to(request.model, fingerprints(request)))

    assert result.predictions == tuple(f"a:m/1.0:{each}" for each in instances)
    assert server.asked[1].instances == tuple(dict.fromkeys(each for each in instances if each != "x"))


@virtual_time
async def test_the_rest_of_a_request_is_asked_for_as_the_request_would_have_been() -> None:
    server = FakeServer()
    request = replace(ASK, instances=("x", "y"), parameters={"k": 1}, deadline=9.0, partition="p", bulk=True)
    await caching(server)(request)

    asked = replace(server.asked[0], fingerprints=())

    assert asked == request


@virtual_time
async def test_an_instance_that_comes_twice_in_a_request_is_asked_for_once_and_answered_twice() -> None:
    server = FakeServer()
    predict = caching(server)
    twice = replace(ASK, instances=("x", "y", "x"))

    cold, warm = await predict(twice), await predict(twice)

    assert [each.instances for each in server.asked] == [("x", "y")]
    assert cold.predictions == warm.predictions == ("a:m/1.0:x", "a:m/1.0:y", "a:m/1.0:x")
    assert cold.cache == CacheUse(hits=0, of=3, ttl=60.0, stored=True)
    assert warm.cache == CacheUse(hits=3, of=3, ttl=60.0)


@virtual_time
async def test_the_same_input_to_two_models_is_two_answers() -> None:
    predict = caching(FakeServer())

    answers = [(await predict(replace(ASK, model=ModelRef(name, "1.0")))).predictions for name in "mnm"]

    assert answers == [("a:m/1.0:x",), ("a:n/1.0:x",), ("a:m/1.0:x",)]


@virtual_time
async def test_a_new_version_is_never_answered_from_the_old_ones_cache() -> None:
    predict = caching(FakeServer())
    await predict(ASK)

    result = await predict(replace(ASK, model=ModelRef("m", "2.0")))

    assert (result.predictions, result.model) == (("a:m/2.0:x",), ModelRef("m", "2.0"))


@virtual_time
async def test_when_the_default_switches_the_new_default_answers() -> None:
    server, cache = FakeServer(), FakeCache()
    fleet = fleet_of(server)
    service = PredictionService(fleet, lambda _: Pipeline(caching(server, cache)))
    ask = PredictionRequest(ModelRef("m"), ("x",))
    before = await service.predict(ask)

    server.models = (ServedModel("m", "1.0", default=False), ServedModel("m", "2.0"))
    await fleet.refresh()
    after = await service.predict(ask)

    assert (before.predictions, after.predictions) == (("a:m/1.0:x",), ("a:m/2.0:x",))


@virtual_time
async def test_callers_of_two_partitions_share_no_answer() -> None:
    server = FakeServer()
    predict = caching(server)

    for partition in ("one", "two", "one"):
        await predict(replace(ASK, partition=partition))

    assert len(server.asked) == 2


@virtual_time
async def test_no_cache_asks_the_model_and_refreshes_what_is_remembered() -> None:
    server = FakeServer("old")
    predict = caching(server)
    await predict(ASK)
    server.name = "new"
    await asyncio.sleep(30.0)

    fresh = await predict(replace(ASK, cache=CacheControl(read=False)))
    later = await predict(ASK)

    assert fresh.predictions == later.predictions == ("new:m/1.0:x",)
    assert fresh.cache == CacheUse(hits=0, of=1, ttl=60.0, stored=True, bypassed=True)
    assert later.cache == CacheUse(hits=1, of=1, ttl=60.0)


@virtual_time
async def test_no_store_leaves_nothing_behind_but_may_be_answered() -> None:
    server, cache = FakeServer(), FakeCache()
    predict = caching(server, cache)
    secretly = replace(ASK, cache=CacheControl(store=False))

    cold = await predict(secretly)
    assert (cache.kept, cold.cache) == ({}, CacheUse(hits=0, of=1))
    await predict(ASK)
    warm = await predict(secretly)

    assert (len(server.asked), warm.cache) == (2, CacheUse(hits=1, of=1, ttl=60.0))


@virtual_time
async def test_no_store_is_not_told_that_it_is_stored_where_another_had_it_stored() -> None:
    async def stored(request: PredictionRequest) -> PredictionResult:
        return PredictionResult(request.model, ("y",), cache=CacheUse(0, 1, 60.0, stored=True))

    result = await Caching(stored, cache=FakeCache(), ttl=60.0)(replace(ASK, cache=CacheControl(store=False)))

    assert result.cache == CacheUse(hits=0, of=1)


@virtual_time
async def test_an_error_is_never_remembered() -> None:
    server = FakeServer(error=ServerFault())
    predict = caching(server)
    for error in (ServerFault(), InputRejectedByModel("no")):
        server.error = error
        with pytest.raises(type(error)):
            await predict(ASK)
    server.error = None

    result = await predict(ASK)

    assert result.predictions == ("a:m/1.0:x",)


@virtual_time
async def test_a_refusal_is_never_remembered_but_the_good_beside_it_are() -> None:
    server = Picky()
    predict = caching(server)
    mixed = replace(ASK, instances=("x", 1, "y"))

    cold, warm = await predict(mixed), await predict(mixed)

    assert [each.instances for each in server.asked] == [("x", 1, "y"), (1,)]
    assert cold.predictions == warm.predictions == ("a:m/1.0:x", Refusal(422, "not 1"), "a:m/1.0:y")
    assert cold.cache == CacheUse(hits=0, of=3, stored=False)
    assert warm.cache == CacheUse(hits=2, of=3, ttl=60.0, stored=False)


@virtual_time
async def test_where_all_is_refused_the_cache_is_not_troubled() -> None:
    cache = FakeCache()

    result = await caching(Picky(), cache)(replace(ASK, instances=(1,)))

    assert (cache.puts, result.cache) == (0, CacheUse(hits=0, of=1))


@virtual_time
async def test_the_ttl_told_is_that_of_the_first_to_go() -> None:
    predict = caching(FakeServer())
    await predict(ASK)
    await asyncio.sleep(10.0)
    await predict(replace(ASK, instances=("y",)))
    await asyncio.sleep(10.0)

    known = await predict(replace(ASK, instances=("y", "x")))
    partly = await predict(replace(ASK, instances=("z", "y", "x")))

    assert known.cache == CacheUse(hits=2, of=2, ttl=40.0)
    assert partly.cache == CacheUse(hits=2, of=3, ttl=40.0, stored=True)


@virtual_time
@pytest.mark.parametrize("prediction", [None, False, 0, 0.0, "", [], {}])
async def test_a_prediction_that_python_takes_for_false_is_a_hit(prediction: Json) -> None:
    asked = []

    async def model(request: PredictionRequest) -> PredictionResult:
        asked.append(request)
        return PredictionResult(request.model, (prediction,) * len(request.instances))

    predict = Caching(model, cache=FakeCache(), ttl=60.0)
    await predict(ASK)

    result = await predict(ASK)
    partly = await predict(replace(ASK, instances=("x", "y")))

    assert (len(asked), result.predictions, partly.predictions) == (
        2,
        (prediction,),
        (prediction, prediction),
    )


@virtual_time
async def test_a_cache_that_stores_nothing_costs_no_answer() -> None:
    server = FakeServer()
    predict = caching(server, FakeCache(full=True))

    results = [await predict(ASK) for _ in range(2)]

    assert [each.predictions for each in results] == [("a:m/1.0:x",)] * 2
    assert [each.cache for each in results] == [CacheUse(hits=0, of=1)] * 2


@virtual_time
async def test_what_was_stored_on_the_way_is_not_stored_again() -> None:
    async def stored(request: PredictionRequest) -> PredictionResult:
        return PredictionResult(
            request.model, ("y",), cache=CacheUse(0, 1, 42.0, stored=True), collapsed=True
        )

    cache = FakeCache()
    result = await Caching(stored, cache=cache, ttl=60.0)(ASK)

    assert (cache.puts, result.cache) == (0, CacheUse(hits=0, of=1, ttl=42.0, stored=True))
    assert result.collapsed


@virtual_time
async def test_what_the_model_took_and_who_answered_is_passed_on() -> None:
    async def exact(request: PredictionRequest) -> PredictionResult:
        return PredictionResult(ModelRef("m", "1.0.7"), request.instances, server_seconds=0.25)

    result = await Caching(exact, cache=FakeCache(), ttl=60.0)(ASK)

    assert (result.model, result.server_seconds, result.collapsed) == (ModelRef("m", "1.0.7"), 0.25, False)


@virtual_time
async def test_a_look_at_what_is_remembered_says_what_caching_would_and_nothing_to_who_wants_the_model() -> (
    None
):
    cache = FakeCache()
    predict, look = caching(FakeServer(), cache), Lookup(cache)
    before = await look(ASK)
    await predict(ASK)

    assert before is None
    assert await look(ASK) == await predict(ASK)
    assert await look(replace(ASK, cache=CacheControl(read=False))) is None
    assert await look(replace(ASK, instances=("x", "new"))) is None
