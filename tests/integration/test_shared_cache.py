"""Gateway processes that share a real Redis: what one was told, all know; and what its loss costs."""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from redis import Redis

from tests.conftest import settings_for
from tests.integration.processes import RunningGateway, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.conftest import StartGateway
    from tests.integration.processes import RunningTorchServe
    from tests.integration.redis_server import RunningRedis

PATIENT = {"REDIS__TIMEOUT": "2"}  # seconds: a busy test machine must not look like a slow Redis
CALLERS = 8
SANE = (
    1.0  # seconds for 99 of 100: the test's own client is the slowest part; a queue for Redis would be slower
)


def sharing(torchserve: RunningTorchServe, redis: RunningRedis, **more: str) -> dict[str, str]:
    return settings_for(torchserve) | {"REDIS__URL": redis.url, "MODELS__FAULTY__CACHING": "true"} | more


@pytest.fixture(scope="module")
def pair(
    torchserve: RunningTorchServe, redis: RunningRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningGateway, RunningGateway]]:
    """Two gateways that share a Redis."""
    settings = sharing(torchserve, redis, **PATIENT)
    a = RunningGateway.start(tmp_path_factory.mktemp("a"), settings)
    try:
        b = RunningGateway.start(tmp_path_factory.mktemp("b"), settings)
        yield a, b
        b.process.stop()
    finally:
        a.process.stop()


def count(seconds: float = 0.0) -> dict[str, Any]:
    """An instance that nobody has asked for yet; the answer says how many times the model was."""
    return {"do": "count", "key": secrets.token_hex(8), "seconds": seconds}


def is_hit(answer: httpx.Response) -> bool:
    status: str = answer.headers.get("cache-status", "")
    return status.startswith("model-dispatcher; hit")


def times(answer: httpx.Response) -> int:
    assert answer.status_code == 200, answer.text
    found: int = answer.json()["predictions"][0]["times"]
    return found


def test_a_gateway_answers_from_what_another_was_told(pair: tuple[RunningGateway, RunningGateway]) -> None:
    a, b = pair
    instance = count()
    first = a.ask("faulty", instance)

    until(lambda: is_hit(b.ask("faulty", instance)), "a hit in the other gateway", seconds=5)

    assert not is_hit(first)
    assert [times(each.ask("faulty", instance)) for each in (a, b)] == [1, 1]


async def test_two_hundred_callers_of_two_gateways_ask_the_model_once(
    pair: tuple[RunningGateway, RunningGateway],
) -> None:
    body = {"model_name": "faulty", "instances": [count(seconds=0.5)]}
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        asking = [client.post(f"{pair[i % 2].url}/dispatch_model", json=body) for i in range(200)]
        answers = await asyncio.gather(*asking)

    assert Counter(map(times, answers)) == {1: 200}


def test_the_caller_of_another_gateway_is_answered_when_the_one_that_asks_is_killed(
    start_gateway: StartGateway, torchserve: RunningTorchServe, own_redis: RunningRedis
) -> None:
    settings = sharing(torchserve, own_redis, REDIS__LEASE="2", **PATIENT)
    holder, other = start_gateway(**settings), start_gateway(**settings)
    instance = count(seconds=1.5)
    with ThreadPoolExecutor() as threads, Redis(port=own_redis.port) as leases:
        lost = threads.submit(holder.ask, "faulty", instance)
        until(lambda: leases.keys("dispatcher:l:*"), "the lease")
        waits = threads.submit(other.ask, "faulty", instance)
        holder.process.stop(signal.SIGKILL)

        assert times(waits.result()) in {1, 2}  # the one that was killed may have got as far as the model
        assert isinstance(lost.exception(), httpx.TransportError)


# --- when Redis is gone, or hangs


@dataclass
class Load:
    """Callers that ask one gateway for a few things over and over, and what they saw."""

    gateway: RunningGateway
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hits: int = 0

    async def during(self, story: Callable[[], Awaitable[None]]) -> None:
        async with httpx.AsyncClient(base_url=self.gateway.url, timeout=60) as client:
            callers = [asyncio.create_task(self._call(client, i)) for i in range(CALLERS)]
            try:
                await story()
            finally:
                for each in callers:
                    each.cancel()
                await asyncio.wait(callers)

    async def see(self, answers: int) -> None:
        """Return after so many more answers."""
        give_up, enough = time.monotonic() + 30, len(self.seconds) + answers
        while len(self.seconds) < enough:
            assert time.monotonic() < give_up, f"{answers} answers did not come; {self.wrong[:3]}"
            await asyncio.sleep(0.02)

    async def see_hits(self) -> None:
        give_up, before = time.monotonic() + 30, self.hits
        while self.hits < before + CALLERS:
            assert time.monotonic() < give_up, f"no hits came; {self.wrong[:3]}"
            await asyncio.sleep(0.02)

    async def _call(self, client: httpx.AsyncClient, number: int) -> None:
        instances = [{"do": "echo", "number": number}]
        body = {"model_name": "faulty", "instances": instances}
        while True:
            begun = time.monotonic()
            answer = await client.post("/dispatch_model", json=body)
            self.seconds.append(time.monotonic() - begun)
            self.hits += is_hit(answer)
            if answer.status_code != 200 or answer.json()["predictions"] != instances:
                self.wrong.append(answer.text)


@pytest.mark.parametrize(("break_it", "mend_it"), [("kill", "start"), ("pause", "resume")])
async def test_a_redis_that_is_gone_for_a_while_costs_hits_only(
    start_gateway: StartGateway,
    torchserve: RunningTorchServe,
    own_redis: RunningRedis,
    break_it: str,
    mend_it: str,
) -> None:
    load = Load(start_gateway(**sharing(torchserve, own_redis)))

    async def story() -> None:
        await load.see_hits()
        await asyncio.to_thread(getattr(own_redis, break_it))
        load.seconds.clear()
        await load.see(300)
        slow = sorted(load.seconds)[int(0.99 * len(load.seconds))]
        assert slow < SANE, f"p99 without Redis was {slow:.3f} s"
        await asyncio.to_thread(getattr(own_redis, mend_it))
        await load.see_hits()

    await load.during(story)

    assert load.wrong == []
