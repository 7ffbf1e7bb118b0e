"""`POST /dispatch_model`: predictions for one or more instances."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from domain.errors import DeadlineExceeded, InvalidRequest
from interface.http import openapi
from interface.http.body import read_body
from interface.http.dispatch_body import decode
from interface.http.exchange import CLIENT_CLOSED_REQUEST, exchange_of
from interface.http.reports import DispatchAnswer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from bootstrap.gateway import Gateway
    from domain.prediction import PredictionRequest, PredictionResult
    from interface.http.exchange import Exchange

router = APIRouter()


@router.post("/dispatch_model/", include_in_schema=False)
@router.post("/dispatch_model", **openapi.DISPATCH_MODEL)
async def dispatch_model(request: Request) -> Response:
    """Ask a model for predictions, one for each instance, in order."""
    gateway: Gateway = request.app.state.gateway
    exchange = exchange_of(request)
    deadline = requested_deadline(request)
    text = await within(
        deadline, gateway.limits.max_timeout, read_body(request, gateway.limits.max_body_bytes)
    )
    body = decode(text, gateway.limits.max_instances)
    exchange.model = body.model_name
    result = await while_connected(request, timed(exchange, gateway, body.request(deadline)))
    if result is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    answer = DispatchAnswer(result.model.name, result.model.version, list(result.predictions))
    return Response(to_json(answer), media_type="application/json")


def requested_deadline(request: Request) -> float | None:
    """The event loop's time until which the caller waits (`X-Request-Timeout`, seconds), None if unsaid."""
    text = request.headers.get("x-request-timeout")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        message = "X-Request-Timeout should be a number of seconds greater than 0."
        raise InvalidRequest(message)
    return asyncio.get_running_loop().time() + seconds


async def within(deadline: float | None, seconds: float, reading: Awaitable[bytes]) -> bytes:
    """What `reading` gives until `deadline`, and in `seconds` at most: a slow sender must come to an end.

    Raises DeadlineExceeded.
    """
    cap = asyncio.get_running_loop().time() + seconds
    try:
        async with asyncio.timeout_at(cap if deadline is None else min(deadline, cap)):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded("The body did not arrive in time.") from None


async def timed(exchange: Exchange, gateway: Gateway, request: PredictionRequest) -> PredictionResult:
    """Answer `request`, and note in `exchange` where the time went."""
    clock = asyncio.get_running_loop().time
    begun = clock()
    result = await gateway.predictions.predict(request)
    exchange.server_seconds = result.server_seconds
    exchange.queue_seconds = max(0.0, clock() - begun - result.server_seconds)
    return result


async def while_connected(
    request: Request, work: Coroutine[None, None, PredictionResult]
) -> PredictionResult | None:
    """The result of `work`, which is cancelled when the caller leaves first: then None."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
