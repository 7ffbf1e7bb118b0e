"""How many batches are in flight, and how they are cut, in gateways that are composed from settings."""

from __future__ import annotations

import asyncio

import pytest

from application.server import Server
from bootstrap.gateway import Models, assemble
from bootstrap.settings import ModelSettings, Settings
from domain.fleet import ServedModel
from domain.prediction import ModelRef, PredictionRequest
from tests.fakes import FakeCache, FakeServer
from tests.virtual_time import virtual_time


@pytest.fixture(autouse=True)
def _settings_of_the_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")


def working(workers: int) -> tuple[ServedModel, ...]:
    return (ServedModel("m", "1.0", workers=9, workers_ready=workers),)


def gateway(*servers: FakeServer, payload: str = "instances", **batching: int) -> Models:
    chosen = ModelSettings.model_validate({"admission": False, "batching": batching, "payload": payload})
    fleet = [Server(each.name, "127.0.0.1", 8080, each.predict, each.probe) for each in servers]
    return assemble(Settings(defaults=chosen), fleet, FakeCache())


async def asking(asked: Models, *texts: str) -> list[asyncio.Task[object]]:
    """A task for each of `texts`, in line or in flight."""
    await asked.fleet.refresh()
    callers = [
        asyncio.create_task(asked.predictions.predict(PredictionRequest(ModelRef("m"), (each,))))
        for each in texts
    ]
    await asyncio.sleep(0.1)
    return [*callers]


@virtual_time
async def test_as_many_batches_are_in_flight_as_all_servers_have_ready_workers() -> None:
    a, b = FakeServer("a", 1.0, models=working(2)), FakeServer("b", 1.0, models=working(1))

    callers = await asking(gateway(a, b), *"12345")

    assert len(a.asked) + len(b.asked) == 3
    await asyncio.gather(*callers)


@virtual_time
async def test_a_look_at_the_servers_changes_how_many_batches_are_in_flight() -> None:
    server = FakeServer(seconds=1.0, models=working(1))
    asked = gateway(server)
    await asyncio.gather(*await asking(asked, *"123"))
    before = len(server.asked)
    server.models = working(3)

    callers = await asking(asked, *"456")

    assert (before, len(server.asked)) == (2, 2 + 3)
    await asyncio.gather(*callers)


@virtual_time
async def test_more_workers_are_noticed_when_the_next_request_comes() -> None:
    server = FakeServer(seconds=1.0, models=working(1))
    asked = gateway(server, max_size=1)
    callers = await asking(asked, *"12345")
    before = len(server.asked)
    server.models = working(3)

    callers += await asking(asked, "6")

    assert (before, len(server.asked)) == (1, 3)
    await asyncio.gather(*callers)


@virtual_time
async def test_more_workers_are_noticed_when_the_next_batch_lands() -> None:
    server = FakeServer(seconds=1.0, models=working(1))
    asked = gateway(server, max_size=1)
    callers = await asking(asked, *"12345")
    server.models = working(3)
    await asked.fleet.refresh()

    await asyncio.sleep(1.0)

    assert len(server.asked) == 1 + 3
    await asyncio.gather(*callers)


@virtual_time
async def test_a_worker_may_have_several_batches() -> None:
    server = FakeServer(seconds=1.0, models=working(2))

    callers = await asking(gateway(server, per_worker=2), *"12345")

    assert len(server.asked) == 4
    await asyncio.gather(*callers)


@virtual_time
async def test_a_batch_costs_no_more_than_the_configuration_allows_by_the_length_of_its_longest() -> None:
    server = FakeServer(seconds=1.0, models=working(1))
    long, short = {"k" * 98, "l" * 98}, {"r" * 8, "s" * 8}  # 100 and 10 bytes of JSON

    mixed = [each for pair in zip(long, short, strict=True) for each in pair]
    await asyncio.gather(*await asking(gateway(server, max_cost=200), "first", *mixed))

    assert [set(each.instances) for each in server.asked[1:]] == [long, short]


@virtual_time
async def test_a_model_that_takes_one_instance_a_request_is_asked_one_by_one_at_once() -> None:
    server = FakeServer(seconds=1.0, models=working(1))

    callers = await asking(gateway(server, payload="body"), *"1234")

    assert [each.instances for each in server.asked] == [("1",), ("2",), ("3",), ("4",)]
    await asyncio.gather(*callers)
