from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

import pytest

from application.policies.caching import Caching
from application.policies.coalescing import Coalescing
from application.policies.leasing import Leasing
from domain.errors import ServerFault
from domain.fingerprint import fingerprints
from domain.prediction import (
    CacheControl,
    CacheUse,
    Json,
    ModelRef,
    PredictionRequest,
    PredictionResult,
    Refusal,
)
from tests.fakes import FakeCache, FakeLeases, FakeServer
from tests.virtual_time import now, virtual_time

M = ModelRef("m", "1.0")
ASK = PredictionRequest(M, ("x",))


def ask(*instances: Json) -> PredictionRequest:
    return PredictionRequest(M, instances)


@dataclass
class Processes:
    """Two gateways that share a cache and leases, in front of one server."""

    server: FakeServer = field(default_factory=lambda: FakeServer(seconds=1.0))
    cache: FakeCache = field(default_factory=FakeCache)
    leases: FakeLeases = field(default_factory=FakeLeases)

    def __post_init__(self) -> None:
        other = FakeLeases(self.leases.held)
        self.one, self.two = self._process(self.leases), self._process(other)

    def _process(self, leases: FakeLeases) -> Leasing:
        return Leasing(self.server.predict, cache=self.cache, leases=leases, ttl=60.0)

    def asked(self) -> list[tuple[Json, ...]]:
        return [each.instances for each in self.server.asked]


async def begun(predict: Leasing, request: PredictionRequest = ASK) -> asyncio.Task[PredictionResult]:
    caller = asyncio.ensure_future(predict(request))
    await asyncio.sleep(0.5)
    return caller


@virtual_time
async def test_two_processes_ask_once() -> None:
    both = Processes()

    one, two = await asyncio.gather(both.one(ASK), both.two(ASK))

    assert both.asked() == [("x",)]
    assert one.predictions == two.predictions == ("a:m/1.0:x",)
    assert (one.collapsed, two.collapsed) == (False, True)
    assert (both.leases.held, both.two._leases.taken) == ({}, 0)  # type: ignore[attr-defined]
    assert now() < 1.2


@virtual_time
async def test_the_holder_says_for_how_long_it_is_stored_and_who_waited_what_is_left_of_that() -> None:
    both = Processes(leases=FakeLeases(turn=4.0))
    both.two._leases.turn = 4.0  # type: ignore[attr-defined]

    one, two = await asyncio.gather(both.one(ASK), both.two(ASK))

    assert one.cache == CacheUse(0, 1, 60.0, stored=True)
    assert two.cache == CacheUse(0, 1, 57.0, stored=True)


@virtual_time
async def test_where_the_holder_fails_the_other_asks() -> None:
    both = Processes()
    both.server.error = ServerFault()
    one, two = await begun(both.one), asyncio.ensure_future(both.two(ASK))

    with pytest.raises(ServerFault):
        await one
    both.server.error = None

    assert (await two).predictions == ("a:m/1.0:x",)
    assert (len(both.server.asked), both.leases.held) == (2, {})


@virtual_time
async def test_where_the_holder_dies_the_other_goes_on_when_the_lease_has_ended() -> None:
    both = Processes()
    (key,) = fingerprints(ASK)
    await both.leases.take([key])

    result = await both.two(ASK)

    assert (result.predictions, len(both.server.asked)) == (("a:m/1.0:x",), 1)
    assert now() == pytest.approx(both.leases.ttl + 1.0, abs=0.2)


@virtual_time
async def test_a_cancelled_holder_gives_its_lease_back() -> None:
    both = Processes()
    holder = await begun(both.one)
    other = await begun(both.two)

    holder.cancel()
    result = await other

    assert holder.cancelled()
    assert (result.predictions, both.server.cancelled, both.leases.held) == (("a:m/1.0:x",), 1, {})
    assert now() < 2.5


@virtual_time
async def test_who_is_cancelled_while_it_waits_leaves_the_holder_alone() -> None:
    both = Processes()
    holder, waiting = await begun(both.one), asyncio.ensure_future(both.two(ASK))
    await asyncio.sleep(0.1)

    waiting.cancel()

    assert (await holder).predictions == ("a:m/1.0:x",)
    assert (len(both.server.asked), both.server.cancelled) == (1, 0)


@virtual_time
async def test_a_slow_holder_whose_lease_has_ended_does_not_end_the_lease_of_the_next() -> None:
    both = Processes(server=FakeServer(seconds=15.0))
    slow = await begun(both.one)
    await asyncio.sleep(9.5)
    second = await begun(both.two)

    await slow

    assert [holder for holder, _ in both.leases.held.values()] == [both.two._leases]
    await second


@virtual_time
async def test_an_answer_that_landed_between_the_look_and_the_lease_is_not_asked_again() -> None:
    both = Processes()
    (key,) = fingerprints(ASK)
    await both.cache.put({key: "from before"}, 30.0)

    result = await both.one(ASK)

    assert (result.predictions, both.asked(), both.leases.held) == (("from before",), [], {})
    assert (result.collapsed, result.cache) == (True, CacheUse(0, 1, 30.0, stored=True))


@virtual_time
async def test_what_cannot_be_stored_is_answered_all_the_same() -> None:
    both = Processes(cache=FakeCache(full=True))

    one, two = await asyncio.gather(both.one(ASK), both.two(ASK))

    assert one.predictions == two.predictions == ("a:m/1.0:x",)
    assert one.cache == two.cache == CacheUse(0, 1)
    assert (len(both.server.asked), both.leases.held) == (2, {})


@virtual_time
async def test_those_who_waited_for_what_cannot_be_stored_then_ask_all_at_once() -> None:
    server, cache, held = FakeServer(seconds=1.0), FakeCache(full=True), FakeLeases().held
    processes = [
        Leasing(server.predict, cache=cache, leases=FakeLeases(held, turn=0.01), ttl=60.0) for _ in range(8)
    ]

    results = await asyncio.gather(*(predict(ASK) for predict in processes))

    assert {each.predictions for each in results} == {("a:m/1.0:x",)}
    assert (len(server.asked), held) == (8, {})
    assert now() < 2.2


@virtual_time
async def test_who_comes_later_waits_for_nobody_but_who_holds_the_lease() -> None:
    both = Processes(cache=FakeCache(full=True))
    one, two = await begun(both.one), asyncio.ensure_future(both.two(ASK))
    await one
    await asyncio.sleep(0.5)  # two is asking for itself now

    await both.one(ASK)

    assert (await two).predictions == ("a:m/1.0:x",)
    assert now() == pytest.approx(2.5)


@virtual_time
async def test_a_refusal_is_answered_but_not_stored_and_the_good_beside_it_are() -> None:
    class Picky(FakeServer):
        async def predict(self, request: PredictionRequest) -> PredictionResult:
            result = await super().predict(request)
            pairs = zip(request.instances, result.predictions, strict=True)
            checked = tuple(p if isinstance(i, str) else Refusal(422, "no") for i, p in pairs)
            return replace(result, predictions=checked)

    both = Processes(server=Picky(seconds=1.0))

    one, two = await asyncio.gather(both.one(ask("x", 1)), both.two(ask("x", 1)))

    assert one.predictions == two.predictions == ("a:m/1.0:x", Refusal(422, "no"))
    assert both.asked() == [("x", 1), (1,)]
    assert one.cache == two.cache == CacheUse(0, 2)
    assert both.cache.puts == 1  # nothing good, nothing put


@virtual_time
@pytest.mark.parametrize(
    "request_",
    [
        replace(ASK, cache=CacheControl(store=False)),
        replace(ASK, cache=CacheControl(read=False)),
        replace(ASK, bulk=True),  # interactive work would wait for it
    ],
)
async def test_no_store_no_cache_and_bulk_work_take_no_lease_and_wait_for_none(
    request_: PredictionRequest,
) -> None:
    both = Processes()
    holder = await begun(both.one)

    result = await both.two(request_)

    assert (len(both.server.asked), both.leases.taken, both.two._leases.taken) == (2, 1, 0)  # type: ignore[attr-defined]
    assert (result.predictions, result.cache) == (("a:m/1.0:x",), None)
    await holder


@virtual_time
async def test_of_several_instances_only_those_that_nobody_else_asks_for_are_asked_for() -> None:
    both = Processes()
    one = await begun(both.one, ask("a", "b"))

    two = await both.two(ask("c", "b", "d", "a", "c"))

    assert two.predictions == tuple(f"a:m/1.0:{each}" for each in "cbdac")
    assert both.asked() == [("a", "b"), ("d", "c")] or both.asked() == [("a", "b"), ("c", "d")]
    assert (two.collapsed, both.leases.held) == (True, {})
    assert two.cache is not None
    assert two.cache.stored
    await one


@virtual_time
async def test_two_who_need_what_the_other_holds_both_end() -> None:
    both = Processes()

    one, two = await asyncio.gather(both.one(ask("a", "b", "c")), both.two(ask("c", "d", "a")))

    assert one.predictions == tuple(f"a:m/1.0:{each}" for each in "abc")
    assert two.predictions == tuple(f"a:m/1.0:{each}" for each in "cda")
    assert sorted(str(i) for asked in both.asked() for i in asked) == ["a", "b", "c", "d"]


@virtual_time
async def test_who_answered_and_how_long_it_took_is_passed_on() -> None:
    async def exact(request: PredictionRequest) -> PredictionResult:
        return PredictionResult(ModelRef("m", "1.0.7"), request.instances, 0.25)

    result = await Leasing(exact, cache=FakeCache(), leases=FakeLeases(), ttl=60.0)(ASK)

    assert (result.model, result.server_seconds) == (ModelRef("m", "1.0.7"), 0.25)


@virtual_time
async def test_behind_cache_and_flights_an_answer_is_stored_once_for_all_who_waited() -> None:
    both = Processes()
    one = Caching(Coalescing(both.one), cache=both.cache, ttl=60.0)
    two = Caching(Coalescing(both.two), cache=both.cache, ttl=60.0)

    results = await asyncio.gather(*(predict(ASK) for predict in (one, two) for _ in range(100)))

    assert (len(both.server.asked), both.cache.puts) == (1, 1)
    assert {result.predictions for result in results} == {("a:m/1.0:x",)}
    assert all(result.cache is not None and result.cache.stored for result in results)
