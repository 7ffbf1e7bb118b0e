"""What every PredictionCache does, in memory and in a real Redis."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from domain.fingerprint import fingerprints
from domain.prediction import ModelRef, PredictionRequest
from infrastructure.memory_cache import MemoryCache
from infrastructure.redis_cache import RedisCache
from infrastructure.redis_connection import RedisConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from domain.ports import Cached, PredictionCache
    from domain.prediction import Json
    from tests.integration.redis_server import RunningRedis

A, B, C = fingerprints(PredictionRequest(ModelRef("m", "1.0"), ("a", "b", "c")))
MOST = 100_000  # bytes: what either cache takes of one prediction


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Shelf:
    cache: PredictionCache
    clock: Clock

    async def get(self, fingerprint: bytes) -> Cached | None:
        (found,) = await self.cache.get((fingerprint,))
        return found

    async def holds(self, fingerprint: bytes) -> bool:
        return await self.get(fingerprint) is not None


@pytest.fixture(params=["memory", "redis"])
async def shelf(request: pytest.FixtureRequest, redis: RunningRedis) -> AsyncIterator[Shelf]:
    clock = Clock()
    if request.param == "memory":
        yield Shelf(MemoryCache(MOST, clock), clock)
        return
    connection = RedisConnection(redis.url, observe=lambda _: None, timeout=1.0)
    assert await connection.connect()
    prefix = secrets.token_bytes(8)
    yield Shelf(RedisCache(connection, prefix=prefix, max_value_bytes=MOST, clock=clock), clock)
    await connection.aclose()


async def test_what_is_not_remembered_is_a_miss_in_its_place(shelf: Shelf) -> None:
    await shelf.cache.put({A: "a", C: "c"}, 60.0)

    found = await shelf.cache.get((C, B, A, C))

    assert [each and each.prediction for each in found] == ["c", None, "a", "c"]


@pytest.mark.parametrize(
    "prediction",
    [
        *(None, False, True, 0, 1, 1.0, -0.0, "", [], {}),
        *(5e-324, 1.7976931348623157e308, 0.1 + 0.2, float("inf"), 2**70, -(2**63)),
        *("grüße 🙂 \u2028 \x00", {"": {"ключ": [None, [[]], {"a": [1, 2.5, "x"]}]}}),
        [i / 7 for i in range(500)],
        "long " * 5000,
    ],
    ids=lambda value: ascii(value)[:20],
)
async def test_a_prediction_comes_back_as_it_was(shelf: Shelf, prediction: Json) -> None:
    assert await shelf.cache.put({A: prediction}, 60.0)

    found = await shelf.get(A)

    assert found is not None
    assert json.dumps(found.prediction) == json.dumps(prediction)  # Python thinks that True == 1 == 1.0


async def test_a_hit_says_how_long_it_stays(shelf: Shelf) -> None:
    await shelf.cache.put({A: "a"}, 60.0)
    shelf.clock.now += 45.0

    found = await shelf.get(A)
    assert found is not None
    assert found.ttl == pytest.approx(15.0)


async def test_what_has_expired_is_a_miss(shelf: Shelf) -> None:
    await shelf.cache.put({A: "a"}, 60.0)
    await shelf.cache.put({B: "b"}, 60.1)
    shelf.clock.now += 60.0

    assert (await shelf.holds(A), await shelf.holds(B)) == (False, True)


async def test_what_is_put_again_replaces_what_was_there(shelf: Shelf) -> None:
    await shelf.cache.put({A: "old", B: "b"}, 10.0)
    await shelf.cache.put({A: "new"}, 60.0)
    shelf.clock.now += 20.0

    found = await shelf.cache.get((A, B))

    assert [each and each.prediction for each in found] == ["new", None]


async def test_nobody_can_change_what_is_remembered(shelf: Shelf) -> None:
    mine: dict[str, Any] = {"scores": [1, 2]}
    await shelf.cache.put({A: mine}, 60.0)
    mine["scores"].append(3)
    theirs: Any = await shelf.get(A)
    theirs.prediction["scores"].clear()

    ours: Any = await shelf.get(A)
    assert ours.prediction == {"scores": [1, 2]}


async def test_what_is_too_large_is_not_remembered_and_its_neighbour_is(shelf: Shelf) -> None:
    incompressible = secrets.token_hex(MOST)
    await shelf.cache.put({A: "a"}, 60.0)

    stored = await shelf.cache.put({B: incompressible, C: "c"}, 60.0)

    assert not stored
    assert (await shelf.holds(B), await shelf.holds(C)) == (False, True)


@pytest.mark.parametrize("ttl", [0.0, -1.0])
async def test_what_may_stay_for_no_time_is_not_remembered(shelf: Shelf, ttl: float) -> None:
    assert not await shelf.cache.put({A: "a"}, ttl)
    assert not await shelf.holds(A)


async def test_what_json_cannot_say_is_not_remembered(shelf: Shelf) -> None:
    deep: Json = 1
    for _ in range(300):
        deep = [deep]

    assert not await shelf.cache.put({A: "\ud800", B: deep}, 60.0)
    assert (await shelf.holds(A), await shelf.holds(B)) == (False, False)


async def test_nothing_can_be_asked_and_put(shelf: Shelf) -> None:
    assert list(await shelf.cache.get(())) == []
    assert await shelf.cache.put({}, 60.0)
