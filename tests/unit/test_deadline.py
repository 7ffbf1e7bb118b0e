from __future__ import annotations

import asyncio

import pytest

from application.policies.deadline import Deadline
from domain.errors import DeadlineExceeded
from domain.prediction import ModelRef, PredictionRequest
from tests.fakes import FakeServer
from tests.virtual_time import now, virtual_time

ASK = PredictionRequest(ModelRef("m", "1.0"), ("x",))


@virtual_time
async def test_no_model_is_given_more_time_by_default_than_the_cap() -> None:
    with pytest.raises(DeadlineExceeded, match="within 10 s"):
        await Deadline(FakeServer(seconds=60.0).predict, default=50.0, cap=10.0)(ASK)

    assert now() == 10.0


@virtual_time
@pytest.mark.parametrize(("patience", "told"), [(None, 3.0), (1.0, 1.0), (5.0, 5.0), (1000.0, 10.0)])
async def test_everything_inside_is_told_what_the_caller_the_default_and_the_cap_leave(
    patience: float | None, told: float
) -> None:
    server = FakeServer()

    await Deadline(server.predict, default=3.0, cap=10.0)(
        PredictionRequest(ASK.model, ASK.instances, deadline=patience)
    )

    assert server.asked[0].deadline == told


@virtual_time
async def test_each_ends_at_its_own_time_whoever_came_first() -> None:
    predict = Deadline(FakeServer(seconds=60.0).predict, default=3.0, cap=10.0)

    async def ended(patience: float) -> float:
        with pytest.raises(DeadlineExceeded):
            await predict(PredictionRequest(ASK.model, ASK.instances, deadline=patience))
        return now()

    assert await asyncio.gather(*map(ended, (9.0, 1.0, 5.0, 7.0))) == [9.0, 1.0, 5.0, 7.0]


@virtual_time
async def test_who_is_cancelled_in_the_moment_the_time_is_over_is_cancelled() -> None:
    predict = Deadline(FakeServer(seconds=60.0).predict, default=3.0, cap=10.0)
    caller = asyncio.ensure_future(predict(ASK))
    asyncio.get_running_loop().call_at(3.0, caller.cancel)

    await asyncio.wait([caller])

    assert (caller.cancelled(), now()) == (True, 3.0)
