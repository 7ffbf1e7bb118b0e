"""`POST /api/predict/`: the prediction for one text, from memory or through the job queue."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response  # noqa: TC002  (FastAPI needs it)

from application.job_service import Submission
from domain.errors import DeadlineExceeded, FieldError, InputRejectedByModel, JobConflict
from domain.job import Failure, JobStatus
from domain.prediction import ModelRef, PredictionRequest, PredictionResult
from interface.http import openapi_predictions, preferences
from interface.http.answer import Answer, spell
from interface.http.body import read_body
from interface.http.connected import respond
from interface.http.dispatch_body import decode_text
from interface.http.exchange import exchange_of
from interface.http.job_report import accepted
from interface.http.problem import recorded

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from bootstrap.gateway import Gateway
    from domain.job import Job
    from interface.http.exchange import Exchange
    from interface.http.preferences import Headers

router = APIRouter()


@router.post("/api/predict", include_in_schema=False)
@router.post("/api/predict/", **openapi_predictions.PREDICT)
async def predict(request: Request) -> Response:
    """Ask the default model about one text: from the cache, else through the queue."""
    gateway: Gateway = request.app.state.gateway
    headers = preferences.by_name(request.scope["headers"])
    text = await read_body(request, gateway.limits, preferences.deadline(headers))
    return await respond(request, answer(gateway, exchange_of(request), headers, text))


def answer(
    gateway: Gateway, exchange: Exchange, headers: Headers, text: bytes
) -> Answer | Coroutine[None, None, Answer]:
    """The answer to a body `text`: at once where it is remembered. Raises a DispatchError."""
    body = decode_text(text)
    seconds = preferences.seconds(headers) or gateway.job_limits.answer_timeout
    until = asyncio.get_running_loop().time() + min(seconds, gateway.limits.max_timeout)
    exchange.model = gateway.job_limits.default_model
    request = PredictionRequest(
        ModelRef(exchange.model),
        (body.text,),
        cache=preferences.cache_control(headers),
        bulk=preferences.bulk(headers),
    )
    found = gateway.predictions.recall(request)
    return _tell(found) if isinstance(found, PredictionResult) else _ask(gateway, found, until)


async def _ask(gateway: Gateway, request: PredictionRequest, until: float) -> Answer:
    """The answer through the queue, or the job where there is none `until` then, or when the gateway stops.

    The job goes on when its caller leaves: the answer will be remembered, or fetched.
    """
    found = await gateway.predictions.remembered(request)
    if found is not None:
        return _tell(found)
    limits = gateway.job_limits
    submission = Submission(
        ModelRef(request.model.name),
        limits.timeout,
        limits.answer_retention,
        bulk=request.bulk,
        cache=request.cache,
    )
    job, outcomes = await gateway.jobs.submit_and_wait(submission, request.instances, until)
    if not job.over:
        return accepted(job)
    return _outcome(job, outcomes)


def _tell(result: PredictionResult) -> Answer:
    status = preferences.cache_status(result)
    content = {  # a reports.PredictAnswer, at half its cost
        "model_name": result.model.name,
        "model_version": result.model.version,
        "prediction": result.predictions[0],
    }
    return Answer(spell(content), headers=() if status is None else ((b"cache-status", status),))


def _outcome(job: Job, outcomes: bytes | None) -> Answer:
    """What became of the one instance. Raises what it failed with."""
    if job.status is JobStatus.EXPIRED:
        raise DeadlineExceeded
    if not outcomes:
        raise JobConflict(f"The job was {job.status} before it was answered.")
    outcome = json.loads(outcomes)
    if "error" not in outcome:
        model = ModelRef(job.model.name, job.answered_by)
        return _tell(PredictionResult(model, (outcome["prediction"],)))
    error = recorded(Failure(**outcome["error"]))
    if isinstance(error, InputRejectedByModel):
        error.errors = (FieldError("/text", str(error)),)
    raise error
