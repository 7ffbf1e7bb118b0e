"""A gateway in front of a model that is slower than its callers."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conftest import settings_for
from tests.integration.processes import RunningGateway, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.integration.processes import RunningTorchServe

SLOW = 1.0  # seconds that the model takes
AT_ONCE = SLOW / 2  # on a busy machine; who waited for the model would need longer
TIGHT = {
    "MODELS__FAULTY__ADMISSION": '{"max_in_flight": 1, "max_waiting": 2}',
    "MODELS__FAULTY__BATCHING": "false",
    "MODELS__FAULTY__CACHING": "true",
}


@pytest.fixture(scope="module")
def tight(
    torchserve: RunningTorchServe, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """Lets in one instance, and two more wait."""
    running = RunningGateway.start(tmp_path_factory.mktemp("tight"), settings_for(torchserve) | TIGHT)
    until(lambda: running.ask("faulty", {"do": "echo"}).status_code == 200, "a first answer")
    yield running
    running.process.stop()


@dataclass
class Told:
    """An answer, and when it was asked for and came."""

    answer: httpx.Response
    begun: float
    ended: float

    @property
    def seconds(self) -> float:
        return self.ended - self.begun


@pytest.fixture
async def client(tight: RunningGateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=tight.url, timeout=60) as client:
        yield client


async def ask(client: httpx.AsyncClient, instance: Any, patience: float = 30.0) -> Told:
    begun = time.monotonic()
    body = {"model_name": "faulty", "instances": [instance]}
    answer = await client.post("/dispatch_model", json=body, headers={"x-request-timeout": str(patience)})
    return Told(answer, begun, time.monotonic())


def sleep(seconds: float) -> dict[str, Any]:
    """An instance that nobody else asks for."""
    return {"do": "sleep", "seconds": seconds, "key": secrets.token_hex(8)}


async def probed(client: httpx.AsyncClient, said: str) -> None:
    """Return when a caller without patience is told `said`."""
    give_up = time.monotonic() + 10
    while said not in (told := await ask(client, sleep(0.0), patience=0.05)).answer.text:
        assert time.monotonic() < give_up, told.answer.text


async def admitted(client: httpx.AsyncClient) -> Told:
    """Come again until there is a place to wait in."""
    while (told := await ask(client, sleep(0.0))).answer.status_code == 503:
        pass
    return told


async def test_who_does_not_fit_is_refused_at_once_and_all_others_are_answered(
    client: httpx.AsyncClient,
) -> None:
    told = await asyncio.gather(*(ask(client, sleep(SLOW)) for _ in range(8)))

    answered = [each for each in told if each.answer.status_code == 200]
    refused = [each for each in told if each.answer.status_code == 503]
    assert (len(answered), len(refused)) == (3, 5), [each.answer.text for each in told]
    assert max(each.seconds for each in refused) < AT_ONCE
    for each in refused:
        problem = each.answer.json()
        assert problem["type"] == "/problems/overloaded"
        assert problem["detail"].startswith("Instances in progress: 1, waiting: 2. No more may wait.")
        assert int(each.answer.headers["retry-after"]) >= 1


async def test_what_is_cached_is_answered_in_the_middle_of_overload(client: httpx.AsyncClient) -> None:
    known = sleep(0.0)
    await ask(client, known)
    crowd = [asyncio.create_task(ask(client, sleep(SLOW))) for _ in range(5)]
    done, others = await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)

    told = await ask(client, known)

    assert {each.result().answer.status_code for each in done} == {503}
    assert told.answer.status_code == 200
    assert told.answer.headers["cache-status"].startswith("model-dispatcher; hit")
    assert told.seconds < AT_ONCE
    await asyncio.wait(others)


async def test_who_leaves_while_waiting_frees_the_place(client: httpx.AsyncClient) -> None:
    holder = asyncio.create_task(ask(client, sleep(3 * SLOW)))
    await probed(client, "/problems/")  # the model is busy
    leaves, stays = [asyncio.create_task(admitted(client)) for _ in range(2)]
    await probed(client, "No more may wait.")

    leaves.cancel()
    newcomer = await admitted(client)

    assert newcomer.begun < (await holder).ended
    assert [each.answer.status_code for each in (newcomer, await stays)] == [200, 200]
