from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from domain.batch import PaddedBatchQueue, Waiting, batch_cost
from domain.prediction import PredictionRequest, ServerAddress
from tests.fakes import FakeServer
from tests.unit.batches import (
    M,
    Refusing,
    ask,
    batching,
    length,
    sent,
    signed,
    start,
    together,
)
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from domain.prediction import Json


@virtual_time
async def test_different_parameters_never_share_a_batch() -> None:
    server = FakeServer(seconds=1.0)
    others: list[dict[str, Json]] = [{"k": True}, {"k": 1}, {"k": 1.0}, {"k": "1"}, {"k": 1, "l": 2}]
    requests = [PredictionRequest(M, ("x",), parameters) for parameters in ({}, *others)]

    await together(batching(server.predict), *requests, PredictionRequest(M, ("y",), {"l": 2, "k": 1}))

    assert sent(server)[1:] == [("x",)] * 5 + [("x", "y")]
    assert [repr(request.parameters) for request in server.asked[2:]] == [repr(each) for each in others]


@virtual_time
async def test_a_caller_that_insists_on_a_server_travels_with_those_that_insist_on_the_same() -> None:
    server = FakeServer(seconds=1.0)
    here, there = ServerAddress("h", 1), ServerAddress("h", 2)
    requests = [PredictionRequest(M, (str(i),), server=at) for i, at in enumerate([here, there, here])]

    await together(batching(server.predict), *requests)

    assert [(r.server, r.instances) for r in server.asked[1:]] == [(here, ("0", "2")), (there, ("1",))]


@virtual_time
async def test_parameters_that_cannot_be_compared_travel_alone() -> None:
    server = FakeServer(seconds=1.0)
    unwritable = PredictionRequest(M, ("x",), {"k": 10**5000})

    await together(batching(server.predict), unwritable, unwritable)

    assert sent(server)[1:] == [("x",), ("x",)]


@virtual_time
async def test_a_batch_waits_as_long_as_the_most_patient_of_its_callers_and_knows_nothing_else_of_them() -> (
    None
):
    server = FakeServer(seconds=1.0)
    private = PredictionRequest(M, ("b",), deadline=9.0, partition="p", bulk=True, fingerprints=(b"f",))
    predict = batching(server.predict)

    await together(predict, ask("a", deadline=5.0), private)
    await together(predict, ask("a", deadline=5.0), ask("b"))

    assert server.asked[1] == PredictionRequest(M, ("a", "b"), deadline=9.0)
    assert server.asked[3].deadline is None


@virtual_time
async def test_a_big_request_is_cut_and_put_together() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: 2, max_size=2)

    result = await predict(ask(*"abcdefg"))

    assert result.predictions == signed(*"abcdefg")
    assert (sorted(map(len, sent(server))), now()) == ([1, 2, 2, 2], 2.0)


@virtual_time
async def test_a_result_says_how_long_its_slowest_batch_took() -> None:
    predict = batching(Refusing().predict, max_size=1)

    assert (await predict(ask("a", "b"))).server_seconds == 0.5


@virtual_time
async def test_short_travel_with_short() -> None:
    server = FakeServer(seconds=1.0)
    texts = ["l" * 90, "s", "s" * 2, "l" * 100, "s" * 3, "l" * 95]

    await together(batching(server.predict, max_cost=300), *(ask(text) for text in texts))

    assert [sorted(map(length, batch)) for batch in sent(server)[1:]] == [[90, 95, 100], [1, 2, 3]]


@virtual_time
async def test_no_batch_costs_more_than_allowed_unless_one_instance_does() -> None:
    server = FakeServer(seconds=1.0)
    texts = ["x" * n for n in (4, 50, 3, 4, 2, 5)]

    await together(batching(server.predict, max_cost=10), *(ask(text) for text in texts))
    await batching(server.predict, max_cost=10)(ask("xxxx", "xxxx", "xxxx"))

    costs = [batch_cost([length(text) for text in batch]) for batch in sent(server)[1:]]
    assert [cost for cost in costs if cost > 10] == [50]


@virtual_time
async def test_a_request_that_is_padded_beyond_what_is_allowed_is_cut_though_a_slot_is_free() -> None:
    server = FakeServer(seconds=1.0)

    await batching(server.predict, max_cost=10)(ask("x" * 8, "y", "z"))

    assert sent(server) == [("x" * 8,), ("y", "z")]


@virtual_time
async def test_nobody_starves() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, max_size=2, max_cost=1000)

    _, long, *_ = await start(predict, ask("first"), ask("l" * 900))
    for _ in range(5):
        await start(predict, *(ask("s") for _ in range(4)))
        await asyncio.sleep(1.0)

    assert long.done()
    assert len(sent(server)[1]) == 1


@virtual_time
async def test_the_earliest_deadline_goes_first() -> None:
    server = FakeServer(seconds=1.0)
    late, soon, none = ask("late", deadline=90.0), ask("soon", deadline=80.0), ask("none")
    other = PredictionRequest(M, ("other",), {"k": 1}, deadline=85.0)

    await together(batching(server.predict, max_size=1), none, late, other, soon)

    assert [batch[0] for batch in sent(server)[1:]] == ["soon", "other", "late", "none"]


def test_nearest_in_cost_are_taken_from_both_sides() -> None:
    queue: PaddedBatchQueue[None] = PaddedBatchQueue(3, None)
    for arrival, cost in enumerate([50, 10, 48, 100, 53, 49]):
        queue.add(Waiting(1.0, arrival, 0, cost, None))

    assert [sorted(each.cost for each in queue.take()) for _ in range(2)] == [[48, 49, 50], [10, 53, 100]]
    assert len(queue) == 0
