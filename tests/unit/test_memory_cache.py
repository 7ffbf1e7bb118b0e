from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from infrastructure.memory_cache import ENTRY_BYTES, MemoryCache
from tests.integration.processes import ROOT

GROWTH = """
import asyncio, os
from infrastructure.memory_cache import MemoryCache

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")

async def fill():
    cache = MemoryCache(20_000_000)
    await cache.put({b"warm": PREDICTION}, 60.0)
    before = resident()
    for _ in range(PUTS):
        await cache.put({os.urandom(16): PREDICTION}, 60.0)
    print(resident() - before)

asyncio.run(fill())
"""


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def cache_for(entries: int, clock: Clock | None = None) -> MemoryCache:
    """Room for so many predictions of one character each: `"x"` is three bytes of JSON."""
    return MemoryCache(entries * (ENTRY_BYTES + 3), clock or Clock())


async def held(cache: MemoryCache, *keys: bytes) -> list[bytes]:
    return [key for key, found in zip(keys, await cache.get(keys), strict=True) if found]


async def test_the_least_recently_used_goes_first() -> None:
    cache = cache_for(3)
    for key in (b"1", b"2", b"3"):
        await cache.put({key: "x"}, 60.0)
    await cache.get((b"1",))
    await cache.put({b"2": "y"}, 60.0)

    await cache.put({b"4": "x"}, 60.0)

    assert await held(cache, b"1", b"2", b"3", b"4") == [b"1", b"2", b"4"]


async def test_a_large_one_takes_the_place_of_several() -> None:
    cache = cache_for(4)
    await cache.put(dict.fromkeys((b"1", b"2", b"3", b"4"), "x"), 60.0)

    await cache.put({b"large": "x" * (ENTRY_BYTES + 4)}, 60.0)

    assert await held(cache, b"1", b"2", b"3", b"4", b"large") == [b"3", b"4", b"large"]


async def test_one_that_is_too_large_drives_nobody_out() -> None:
    cache = cache_for(2)
    await cache.put({b"1": "x", b"2": "x"}, 60.0)

    assert not await cache.put({b"2": "x" * 3 * ENTRY_BYTES}, 60.0)

    assert await held(cache, b"1", b"2") == [b"1"]  # 2 is no longer what it was


async def test_an_expired_one_goes_before_a_live_one() -> None:
    clock = Clock()
    cache = cache_for(3, clock)
    await cache.put({b"old and live": "x"}, 60.0)
    await cache.put({b"expired": "x"}, 1.0)
    await cache.put({b"live": "x"}, 60.0)
    clock.now = 2.0

    await cache.put({b"new": "x"}, 60.0)

    assert await held(cache, b"old and live", b"expired", b"live", b"new") == [
        b"old and live",
        b"live",
        b"new",
    ]


async def test_an_expired_one_is_dropped_when_it_is_met() -> None:
    clock = Clock()
    cache = cache_for(3, clock)
    await cache.put({b"1": "x"}, 1.0)
    clock.now = 1.0

    await cache.get((b"1",))

    assert (len(cache), cache.size) == (0, 0)


async def test_the_accounts_are_right_after_any_traffic() -> None:
    cache = cache_for(50)
    for i in range(1000):
        await cache.put({b"%d" % (i * i % 83): "x" * (i % 97)}, 60.0)

    found = await cache.get([b"%d" % i for i in range(83)])
    sizes = [ENTRY_BYTES + len(str(each.prediction)) + 2 for each in found if each]

    assert cache.size == sum(sizes) <= 50 * (ENTRY_BYTES + 3)
    assert len(cache) == len(sizes) > 40


@pytest.mark.parametrize(
    ("prediction", "puts"),
    [('{"label": "positive", "score": 0.98}', 120_000), ("[i / 7 for i in range(100)]", 20_000)],
)
def test_a_full_cache_takes_the_memory_it_was_given(prediction: str, puts: int) -> None:
    script = GROWTH.replace("PREDICTION", prediction).replace("PUTS", str(puts))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)

    assert 0.7 < int(done.stdout) / 20_000_000 < 1.3
