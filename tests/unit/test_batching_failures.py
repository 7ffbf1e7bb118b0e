from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING, cast

import pytest

from domain.errors import (
    InputRejectedByModel,
    PayloadTooLarge,
    ServerBusy,
    ServerFault,
    ServerUnreachable,
)
from domain.prediction import PredictionRequest, PredictionResult, Refusal
from tests.unit.batches import (
    M,
    Refusing,
    SuspiciousServer,
    ask,
    batching,
    kinds,
    sent,
    signed,
    start,
    together,
)
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from domain.prediction import Prediction


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
