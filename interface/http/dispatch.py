"""`POST /dispatch_model`: predictions for one or more instances."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, TypeVar

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from domain.errors import DeadlineExceeded
from domain.prediction import ModelRef, PredictionRequest, PredictionResult
from interface.http import openapi_predictions, preferences
from interface.http.answer import Answer
from interface.http.body import read_body
from interface.http.dispatch_body import decode
from interface.http.exchange import CLIENT_CLOSED_REQUEST, exchange_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

    from bootstrap.gateway import Gateway
    from interface.http.exchange import Exchange
    from interface.http.preferences import Headers

T = TypeVar("T")

router = APIRouter()


@router.post("/dispatch_model/", include_in_schema=False)
@router.post("/dispatch_model", **openapi_predictions.DISPATCH_MODEL)
async def dispatch_model(request: Request) -> Response:
    """Ask a model for predictions, one for each instance, in order."""
    gateway: Gateway = request.app.state.gateway
    headers = preferences.by_name(request.scope["headers"])
    limits = gateway.limits
    deadline = preferences.deadline(headers)
    text = await within(deadline, limits.max_timeout, read_body(request, limits.max_body_bytes))
    found = answer(gateway, exchange_of(request), headers, text)
    return await respond(request, found)


def answer(
    gateway: Gateway, exchange: Exchange, headers: Headers, text: bytes
) -> Answer | Coroutine[None, None, Answer]:
    """The answer to a body `text`: at once where it is remembered. Raises a DispatchError."""
    request = gateway.predictions.recall(ask(gateway, exchange, headers, text))
    return (
        tell(exchange, request)
        if isinstance(request, PredictionResult)
        else _predict(gateway, exchange, request)
    )


async def _predict(gateway: Gateway, exchange: Exchange, request: PredictionRequest) -> Answer:
    return tell(exchange, await gateway.predictions.predict(request))


def ask(gateway: Gateway, exchange: Exchange, headers: Headers, text: bytes) -> PredictionRequest:
    """What a body `text` asks for. Raises a DispatchError."""
    body = decode(text, gateway.limits.max_instances)
    exchange.model = body.model_name
    exchange.asked = time.perf_counter()
    return PredictionRequest(
        ModelRef(body.model_name, body.model_version),
        tuple(body.instances),
        body.parameters,
        body.server,
        preferences.deadline(headers),
        cache=preferences.cache_control(headers),
        bulk=preferences.bulk(headers),
    )


def tell(exchange: Exchange, result: PredictionResult) -> Answer:
    """`result` for the caller."""
    exchange.server_seconds = result.server_seconds
    status = preferences.cache_status(result)
    content = {  # a reports.DispatchAnswer, at half its cost
        "model_name": result.model.name,
        "model_version": result.model.version,
        "predictions": result.predictions,
    }
    return Answer(to_json(content), headers=() if status is None else ((b"cache-status", status),))


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


async def respond(request: Request, found: Answer | Coroutine[None, None, Answer]) -> Response:
    """The response with what an endpoint has `found`; work that is awaited ends when the caller leaves."""
    if isinstance(found, Answer):
        return found.response()
    awaited = await while_connected(request, found)
    return Response(status_code=CLIENT_CLOSED_REQUEST) if awaited is None else awaited.response()


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T | None:
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
