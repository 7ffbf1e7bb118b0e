"""A gateway in front of a model that is slower than its callers."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conftest import settings_for
from tests.integration.processes import RunningGateway, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.integration.gate import Gate
    from tests.integration.processes import RunningTorchServe

AT_ONCE = 5.0  # seconds, on a busy machine; who waited for the model would wait until the gate is open
FULL = "No more may wait."
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


@pytest.fixture
async def client(tight: RunningGateway) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=tight.url, timeout=60) as client:
        yield client


async def ask(client: httpx.AsyncClient, instance: Any, patience: float = 30.0) -> httpx.Response:
    body = {"model_name": "faulty", "instances": [instance]}
    return await client.post("/dispatch_model", json=body, headers={"x-request-timeout": str(patience)})


def quick() -> dict[str, Any]:
    """An instance that nobody else asks for."""
    return {"do": "echo", "key": secrets.token_hex(8)}


async def probed(client: httpx.AsyncClient, *, full: bool) -> None:
    """Return when a caller without patience finds that no more may wait, or that one more may."""
    give_up = time.monotonic() + 10
    while (FULL in (told := await ask(client, quick(), patience=0.05)).text) != full:
        assert time.monotonic() < give_up, told.text


async def admitted(client: httpx.AsyncClient) -> httpx.Response:
    """Come again until there is a place to wait in."""
    while (told := await ask(client, quick())).status_code == 503:
        pass
    return told


async def test_who_does_not_fit_is_refused_at_once_and_all_others_are_answered(
    client: httpx.AsyncClient, gate: Gate
) -> None:
    crowd = [asyncio.create_task(ask(client, gate.held())) for _ in range(8)]

    refused = [await each for each in islice(asyncio.as_completed(crowd, timeout=AT_ONCE), 5)]
    gate.open()
    told = await asyncio.gather(*crowd)

    assert Counter(each.status_code for each in told) == {200: 3, 503: 5}, [each.text for each in told]
    for each in refused:
        problem = each.json()
        assert problem["type"] == "/problems/overloaded"
        assert problem["detail"].startswith(f"Instances in progress: 1, waiting: 2. {FULL}")
        assert int(each.headers["retry-after"]) >= 1


async def test_what_is_cached_is_answered_in_the_middle_of_overload(
    client: httpx.AsyncClient, gate: Gate
) -> None:
    known = quick()
    await ask(client, known)
    crowd = [asyncio.create_task(ask(client, gate.held())) for _ in range(5)]
    done, others = await asyncio.wait(crowd, return_when=asyncio.FIRST_COMPLETED)

    async with asyncio.timeout(AT_ONCE):
        told = await ask(client, known)

    assert {each.result().status_code for each in done} == {503}
    assert told.status_code == 200
    assert told.headers["cache-status"].startswith("model-dispatcher; hit")
    gate.open()
    await asyncio.wait(others)


async def test_who_leaves_while_waiting_frees_the_place(client: httpx.AsyncClient, gate: Gate) -> None:
    holder = asyncio.create_task(ask(client, gate.held()))
    await asyncio.to_thread(gate.until_begun)
    leaves, stays = [asyncio.create_task(admitted(client)) for _ in range(2)]
    await probed(client, full=True)

    leaves.cancel()
    await probed(client, full=False)
    newcomer = asyncio.create_task(admitted(client))
    await probed(client, full=True)
    gate.open()

    assert [each.status_code for each in await asyncio.gather(holder, newcomer, stays)] == [200] * 3
