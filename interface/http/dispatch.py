"""`POST /dispatch_model`: predictions for one or more instances."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002  (FastAPI needs it)

from domain.prediction import ModelRef, PredictionRequest, PredictionResult
from interface.http import openapi_predictions, preferences
from interface.http.answer import Answer, spell
from interface.http.body import read_body
from interface.http.connected import respond
from interface.http.dispatch_body import decode
from interface.http.exchange import exchange_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from bootstrap.gateway import Gateway
    from interface.http.exchange import Exchange
    from interface.http.preferences import Headers

router = APIRouter()


@router.post("/dispatch_model/", include_in_schema=False)
@router.post("/dispatch_model", **openapi_predictions.DISPATCH_MODEL)
async def dispatch_model(request: Request) -> Response:
    """Ask a model for predictions, one for each instance, in order."""
    gateway: Gateway = request.app.state.gateway
    headers = preferences.by_name(request.scope["headers"])
    text = await read_body(request, gateway.limits, preferences.deadline(headers))
    return await respond(request, answer(gateway, exchange_of(request), headers, text))


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
    model, instances = ModelRef(body.model_name, body.model_version), tuple(body.instances)
    if preferences.none(headers):
        return PredictionRequest(model, instances, body.parameters, body.server)
    return PredictionRequest(
        model,
        instances,
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
    return Answer(spell(content), headers=() if status is None else ((b"cache-status", status),))
