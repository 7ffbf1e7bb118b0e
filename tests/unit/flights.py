"""Callers who ask for the same at once: what tests of coalescing share."""

from __future__ import annotations

import asyncio
import functools
import gc
from typing import TYPE_CHECKING, Any, ParamSpec

from domain.prediction import ModelRef, PredictionRequest
from tests.virtual_time import virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from domain.ports import Predictor
    from domain.prediction import Json, PredictionResult

P = ParamSpec("P")

M = ModelRef("m", "1.0")


def ask(*instances: Json, deadline: float | None = None, bulk: bool = False) -> PredictionRequest:
    return PredictionRequest(M, instances, deadline=deadline, bulk=bulk)


def answers(*instances: Json) -> tuple[str, ...]:
    return tuple(f"a:m/1.0:{each}" for each in instances)


def leaving_nothing_behind(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs a test on virtual time; no task may be left, and no exception unheard."""

    @virtual_time
    @functools.wraps(test)
    async def run(*args: P.args, **kwargs: P.kwargs) -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await test(*args, **kwargs)
        await settled()
        gc.collect()
        assert complaints == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return run


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def begun(predict: Predictor, request: PredictionRequest) -> asyncio.Task[PredictionResult]:
    """A caller who is waiting, and who takes an error as an answer."""
    caller = asyncio.ensure_future(predict(request))
    caller.add_done_callback(lambda done: done.cancelled() or done.exception())
    await settled()
    return caller


async def outcomes(
    *callers: asyncio.Task[PredictionResult],
) -> list[PredictionResult | BaseException]:
    return await asyncio.gather(*callers, return_exceptions=True)
