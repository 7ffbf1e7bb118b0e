from __future__ import annotations

import asyncio
import traceback
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from application.policies.batching import Batching
from domain.batch import PaddedBatchQueue, Waiting, batch_cost
from domain.errors import (
    DeadlineExceeded,
    InputRejectedByModel,
    PayloadTooLarge,
    ServerBusy,
    ServerFault,
    ServerUnreachable,
)
from domain.events import BatchSent
from domain.prediction import ModelRef, PredictionRequest, PredictionResult, Refusal, ServerAddress
from tests.fakes import FakeServer
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from domain.events import Event
    from domain.ports import Predictor
    from domain.prediction import Json, Prediction

M = ModelRef("m", "1.0")
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)


@dataclass
class SuspiciousServer(FakeServer):
    """A FakeServer that fails, with `error`, only where a `guilty` instance is among those it is asked."""

    seconds: float = 1.0
    guilty: Sequence[Json] = ()

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        error, self.error = self.error, None
        try:
            result = await super().predict(request)
        finally:
            self.error = error
        if error is not None and not set(self.guilty).isdisjoint(request.instances):
            raise error
        return result


@dataclass
class Refusing:
    """A model that refuses every instance that is not lower case."""

    asked: list[PredictionRequest] = field(default_factory=list)

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        self.asked.append(request)
        await asyncio.sleep(1.0)
        predictions = [t if t.islower() else Refusal(422, t) for t in map(str, request.instances)]
        return PredictionResult(M, tuple(predictions), 0.5)


def batching(
    inner: Predictor,
    *,
    slots: Callable[[], int] = lambda: 1,
    max_size: int = 32,
    max_cost: int | None = None,
    heard: list[Event] | None = None,
) -> Batching:
    cost = None if max_cost is None else length
    observe = (heard if heard is not None else []).append
    return Batching(inner, slots=slots, max_size=max_size, max_cost=max_cost, cost=cost, observe=observe)


def length(instance: Json) -> int:
    return len(cast("str", instance))


def ask(*instances: str, deadline: float | None = None) -> PredictionRequest:
    return PredictionRequest(M, instances, deadline=deadline)


def signed(*instances: str) -> tuple[str, ...]:
    return tuple(f"a:m/1.0:{each}" for each in instances)


def sent(server: FakeServer | Refusing) -> list[tuple[Json, ...]]:
    return [request.instances for request in server.asked]


async def together(
    predict: Predictor, *requests: PredictionRequest
) -> list[PredictionResult | BaseException]:
    """What came of `requests`, which meet while a first one keeps the slot busy."""
    first = asyncio.create_task(predict(ask("first")))
    await asyncio.sleep(0)
    results = await asyncio.gather(*(predict(request) for request in requests), return_exceptions=True)
    await first
    return results


async def start(predict: Predictor, *requests: PredictionRequest) -> list[asyncio.Task[PredictionResult]]:
    """A task for each of `requests`, in line or in flight."""
    tasks = [asyncio.create_task(predict(request)) for request in requests]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


def kinds(results: Sequence[object]) -> list[str]:
    """The names of the errors among `results`, "answered" for each of the others."""
    return [type(r).__name__ if isinstance(r, BaseException) else "answered" for r in results]


# --- when they leave


@virtual_time
async def test_a_lone_request_waits_for_nothing() -> None:
    server = FakeServer(seconds=1.0)
    request = ask("x")
    tasks_before = asyncio.all_tasks()
    seen: list[set[asyncio.Task[object]]] = []

    async def inner(request: PredictionRequest) -> PredictionResult:
        seen.append(asyncio.all_tasks())
        return await server.predict(request)

    result = await batching(inner)(request)

    assert (result.predictions, now()) == (signed("x"), 1.0)
    assert (server.asked, seen) == ([request], [tasks_before])


@virtual_time
async def test_requests_that_meet_while_all_slots_are_busy_leave_together() -> None:
    heard: list[Event] = []
    server = FakeServer(seconds=1.0)

    results = await together(batching(server.predict, heard=heard), ask("b"), ask("c", "d"))

    assert results == [PredictionResult(M, signed("b")), PredictionResult(M, signed("c", "d"))]
    assert (sent(server), now()) == ([("first",), ("b", "c", "d")], 2.0)
    assert heard == [BatchSent(M, 1, 1, 0.0), BatchSent(M, 3, 2, 1.0)]


@virtual_time
async def test_a_request_leaves_at_once_while_a_slot_is_free() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: 3)

    waiting = await start(predict, *(ask(text) for text in "abcde"))
    at_once = sent(server)
    await asyncio.gather(*waiting)

    assert at_once == [("a",), ("b",), ("c",)]
    assert sent(server)[3:] == [("d", "e")]


@virtual_time
async def test_a_full_batch_leaves_the_rest_for_the_next() -> None:
    server = FakeServer(seconds=1.0)

    await together(batching(server.predict, max_size=2), *(ask(text) for text in "abc"))

    assert sent(server) == [("first",), ("a", "b"), ("c",)]


@virtual_time
async def test_more_workers_are_more_slots() -> None:
    slots = 1
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: slots, max_size=1)

    waiting = await start(predict, *(ask(text) for text in "abcd"))
    slots = 3
    await start(predict, ask("e"))
    in_flight = len(server.asked)
    await asyncio.gather(*waiting)

    assert in_flight == 3
    assert now() == 2.0


@virtual_time
async def test_fewer_workers_are_fewer_slots_as_soon_as_a_batch_lands() -> None:
    slots = 3
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: slots, max_size=1)

    waiting = await start(predict, *(ask(text) for text in "abcdefghi"))
    await asyncio.sleep(1.5)
    slots = 1
    await asyncio.gather(*waiting)

    assert now() == 5.0


@virtual_time
async def test_a_model_without_workers_is_still_asked() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, slots=lambda: 0)

    await together(predict, ask("a"))

    assert sent(server) == [("first",), ("a",)]


@virtual_time
async def test_the_next_batch_is_on_its_way_before_the_callers_of_the_last_go_on() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict, max_size=1)
    sent_by_then: list[int] = []

    async def caller(text: str) -> None:
        await predict(ask(text))
        sent_by_then.append(len(server.asked))

    await asyncio.gather(*(caller(text) for text in "abc"))

    assert sent_by_then[1:] == [3, 3]


@virtual_time
@pytest.mark.parametrize("error", [ServerFault(), ServerBusy(), RuntimeError("a bug")])
async def test_a_slot_that_fails_is_free_again(error: Exception) -> None:
    async def failing(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(len(request.instances))
        raise error

    predict = batching(failing)

    for _ in range(2):
        with pytest.raises(type(error)):
            await predict(ask("x"))
        outcomes = await asyncio.gather(*(predict(ask(t)) for t in "ab"), return_exceptions=True)
        assert outcomes == [error, error]


# --- who travels with whom


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


# --- callers who leave


@virtual_time
async def test_expired_requests_are_never_sent() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict)

    results = await together(predict, ask("late", deadline=0.5), ask("b"), ask("due", deadline=1.0))
    with pytest.raises(DeadlineExceeded):
        await predict(ask("past", deadline=now()))

    assert kinds(results) == ["DeadlineExceeded", "answered", "DeadlineExceeded"]
    assert sent(server) == [("first",), ("b",)]


@virtual_time
async def test_a_cancelled_caller_does_not_disturb_its_batch() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict)
    _, leaving, waiting, staying = await start(predict, ask("a"), ask("b"), ask("c"), ask("d"))

    waiting.cancel()
    await asyncio.sleep(1.5)
    leaving.cancel()

    assert (await staying).predictions == signed("d")
    assert (leaving.cancelled(), server.cancelled, sent(server)) == (True, 0, [("a",), ("b", "d")])


@virtual_time
async def test_the_last_leaving_caller_cancels_the_call() -> None:
    server = FakeServer(seconds=1.0)
    predict = batching(server.predict)
    _, b, c = await start(predict, ask("a"), ask("b"), ask("c"))
    await asyncio.sleep(1.5)

    b.cancel()
    await start(predict)
    cancelled_by_the_first = server.cancelled
    c.cancel()
    await start(predict)

    assert (cancelled_by_the_first, server.cancelled) == (0, 1)
    assert (await predict(ask("d"))).predictions == signed("d")
    assert now() == 2.5


@virtual_time
async def test_a_caller_that_leaves_an_inline_call_frees_its_slot_for_those_who_wait() -> None:
    server = FakeServer(seconds=1.0)
    first, second = await start(batching(server.predict), ask("a"), ask("b"))

    first.cancel()
    await second

    assert (server.cancelled, sent(server), now()) == (1, [("a",), ("b",)], 1.0)


@virtual_time
async def test_a_request_that_failed_in_part_is_given_up_in_whole() -> None:
    quick, slow = FakeServer(seconds=1.0, error=ServerBusy()), FakeServer(seconds=9.0)

    async def inner(request: PredictionRequest) -> PredictionResult:
        server = quick if "a" in request.instances else slow
        return await server.predict(request)

    with pytest.raises(ServerBusy):
        await batching(inner, slots=lambda: 2, max_size=1)(ask("a", "b", "c"))
    await asyncio.sleep(0)

    assert (sent(slow), slow.cancelled, now()) == ([("b",)], 1, 1.0)


@virtual_time
async def test_a_call_that_is_cancelled_from_inside_leaves_nobody_waiting() -> None:
    async def inner(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(1.0)
        if request.instances[0] != "first":
            raise asyncio.CancelledError
        return PredictionResult(M, request.instances)

    predict = batching(inner)

    assert kinds(await together(predict, ask("a"), ask("b"))) == ["CancelledError"] * 2
    assert (await predict(ask("first"))).predictions == ("first",)


# --- batches that fail


@virtual_time
@pytest.mark.parametrize("error", [InputRejectedByModel("no"), PayloadTooLarge(), ServerFault()])
@pytest.mark.parametrize("guilty", ["0", "13", "31"])
async def test_only_the_guilty_pays_for_a_poisoned_batch(error: Exception, guilty: str) -> None:
    server = SuspiciousServer(error=error, guilty=[guilty])  # type: ignore[arg-type]
    texts = [str(i) for i in range(32)]

    results = await together(batching(server.predict), *(ask(text) for text in texts))

    assert len(server.asked) == 1 + 11
    for text, result in zip(texts, results, strict=True):
        assert result == (error if text == guilty else PredictionResult(M, signed(text)))


@virtual_time
@pytest.mark.parametrize("guilty", [["0", "1", "2"], ["3", "17", "31"], ["29", "30", "31"]])
async def test_three_guilty_of_32_each_pay_alone(guilty: list[str]) -> None:
    server = SuspiciousServer(error=ServerFault(), guilty=guilty)

    results = await together(batching(server.predict), *(ask(str(i)) for i in range(32)))

    assert [str(i) for i, kind in enumerate(kinds(results)) if kind == "ServerFault"] == guilty


@virtual_time
async def test_a_broken_server_is_not_asked_63_times_for_a_batch_of_32() -> None:
    server = SuspiciousServer(error=ServerFault(), guilty=[str(i) for i in range(32)])

    results = await together(batching(server.predict), *(ask(str(i)) for i in range(32)))

    assert kinds(results) == ["ServerFault"] * 32
    assert len(server.asked) == 1 + 10


@virtual_time
async def test_a_server_that_answers_somebody_is_not_broken_however_many_are_guilty() -> None:
    guilty = [str(i) for i in range(1, 31)]
    server = SuspiciousServer(error=ServerFault(), guilty=guilty)

    results = await together(batching(server.predict), *(ask(str(i)) for i in range(32)))

    assert kinds(results) == ["answered", *["ServerFault"] * 30, "answered"]


@virtual_time
async def test_a_batch_acts_in_the_context_of_none_of_its_callers() -> None:
    seen: list[str | None] = []

    async def inner(request: PredictionRequest) -> PredictionResult:
        seen.append(REQUEST_ID.get())
        await asyncio.sleep(1.0)
        return PredictionResult(M, request.instances)

    REQUEST_ID.set("mine")
    await together(batching(inner), ask("a"), ask("b"))

    assert seen == ["mine", None]


@virtual_time
async def test_a_model_that_rejects_much_is_not_taken_for_a_broken_server() -> None:
    guilty = [str(i) for i in range(31)]
    server = SuspiciousServer(error=InputRejectedByModel(), guilty=guilty)

    results = await together(batching(server.predict), *(ask(str(i)) for i in range(32)))

    assert kinds(results) == ["InputRejectedByModel"] * 31 + ["answered"]


@virtual_time
async def test_what_no_instance_can_have_caused_is_told_to_all_at_once() -> None:
    server = SuspiciousServer(error=ServerUnreachable("gone"), guilty=["b"])

    results = await together(batching(server.predict), ask("a"), ask("b"), ask("c"))

    assert kinds(results) == ["ServerUnreachable"] * 3
    assert len(server.asked) == 2


@virtual_time
async def test_an_error_of_many_callers_carries_the_way_to_one_of_them_only() -> None:
    server = SuspiciousServer(error=ServerBusy(), guilty=["x"])

    async def frames() -> int:
        try:
            await predict(ask("x"))
        except ServerBusy as error:
            return len(traceback.extract_tb(error.__traceback__))
        return 0

    predict = batching(server.predict)
    first = asyncio.create_task(predict(ask("first")))
    await asyncio.sleep(0)

    assert len(set(await asyncio.gather(*(frames() for _ in range(20))))) == 1
    await first


@virtual_time
async def test_bisecting_holds_the_slot() -> None:
    server = SuspiciousServer(error=ServerFault(), guilty=["b"])
    predict = batching(server.predict, max_size=2)

    await together(predict, ask("a"), ask("b"), ask("c"))

    assert (sent(server), now()) == ([("first",), ("a", "b"), ("a",), ("b",), ("c",)], 5.0)


@virtual_time
async def test_nobody_is_asked_for_again_who_has_left_or_is_too_late() -> None:
    server = SuspiciousServer(error=ServerFault(), guilty=["a", "b"])
    predict = batching(server.predict)
    _, _, b, *rest = await start(
        predict,
        ask("first"),
        *(ask(t, deadline=due) for t, due in zip("abcd", (2.1, 2.2, 2.5, 9.0), strict=True)),
    )
    await asyncio.sleep(1.5)

    b.cancel()
    results = await asyncio.gather(*rest, return_exceptions=True)

    assert kinds(results) == ["DeadlineExceeded", "answered"]
    assert sent(server)[1:] == [("a", "b", "c", "d"), ("a",), ("d",)]


@virtual_time
async def test_a_request_of_several_is_told_which_of_them_the_model_rejects() -> None:
    server = SuspiciousServer(error=InputRejectedByModel("not this", code=415), guilty=["b"])
    expected: tuple[Prediction, ...] = (*signed("a"), Refusal(415, "not this"), *signed("c"))

    alone = await batching(server.predict)(ask("a", "b", "c"))
    [met, other] = await together(batching(server.predict), ask("a", "b", "c"), ask("d"))

    assert alone.predictions == expected
    assert (met, other) == (PredictionResult(M, expected), PredictionResult(M, signed("d")))


@virtual_time
async def test_a_request_that_travels_alone_is_not_asked_twice_for_a_fault() -> None:
    server = SuspiciousServer(error=ServerFault(), guilty=["b"])

    with pytest.raises(ServerFault):
        await batching(server.predict)(ask("a", "b", "c"))

    assert len(server.asked) == 1


@virtual_time
async def test_an_instance_alone_is_rejected_in_the_models_own_words() -> None:
    error = InputRejectedByModel("not this", code=415)
    server = SuspiciousServer(error=error, guilty=["b"])
    predict = batching(server.predict)

    with pytest.raises(InputRejectedByModel) as alone:
        await predict(ask("b"))
    [met, _] = await together(predict, ask("b"), ask("c"))

    assert alone.value is error
    assert met is error


@virtual_time
async def test_refusals_find_their_callers() -> None:
    model = Refusing()

    results = await together(batching(model.predict), ask("good"), ask("BAD"), ask("also good"))

    assert [cast("PredictionResult", r).predictions for r in results] == [
        ("good",),
        (Refusal(422, "BAD"),),
        ("also good",),
    ]


@virtual_time
async def test_a_predictor_that_loses_count_answers_nobody() -> None:
    async def forgetful(request: PredictionRequest) -> PredictionResult:
        await asyncio.sleep(1.0)
        return PredictionResult(M, request.instances[:1])

    results = await together(batching(forgetful), ask("a"), ask("b"))

    assert kinds(results) == ["ValueError"] * 2


# --- thousands in line


def test_nearest_in_cost_are_taken_from_both_sides() -> None:
    queue: PaddedBatchQueue[None] = PaddedBatchQueue(3, None)
    for arrival, cost in enumerate([50, 10, 48, 100, 53, 49]):
        queue.add(Waiting(1.0, arrival, 0, cost, None))

    assert [sorted(each.cost for each in queue.take()) for _ in range(2)] == [[48, 49, 50], [10, 53, 100]]
    assert len(queue) == 0
