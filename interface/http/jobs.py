"""`/jobs`: work that is accepted now, and answered later."""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response  # noqa: TC002  (FastAPI needs it)

from application.job_service import CHUNK, encode
from domain.errors import DeadlineExceeded, DispatchError, InvalidRequest, JobConflict, JobNotFound
from domain.job import JobStatus
from domain.ports import Search
from interface.http import job_report, ndjson, openapi_jobs, preferences
from interface.http.answer import CLOSE, Answer
from interface.http.body import check_encoding, read_body
from interface.http.connected import respond, while_connected
from interface.http.exchange import exchange_of
from interface.http.job_body import Identity, check_query, decode, decode_query, submission
from interface.http.problem import problem_answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from application.job_service import Submission
    from bootstrap.gateway import Gateway
    from domain.job import Job
    from domain.prediction import Json
    from interface.http.exchange import Exchange
    from interface.http.preferences import Headers

PAGE, MOST = 20, 100  # jobs in one answer: where the caller does not say, and at most

router = APIRouter(tags=["jobs"])

_NUMBER = re.compile("[0-9]{1,15}")


@router.post("/jobs", **openapi_jobs.SUBMIT)
async def submit(request: Request) -> Response:
    """Accept a job: it is recorded and queued, durably, before this answers."""
    gateway: Gateway = request.app.state.gateway
    headers = preferences.by_name(request.scope["headers"])
    if ndjson.is_said_by(headers):
        return await _submit_lines(request, gateway, headers)
    check_query(request.query_params)
    text = await read_body(request, gateway.limits, preferences.deadline(headers))
    return await respond(request, answer(gateway, exchange_of(request), headers, text))


async def answer(gateway: Gateway, exchange: Exchange, headers: Headers, text: bytes) -> Answer:
    """The job that a JSON body `text` asks for, accepted. Raises a DispatchError."""
    if ndjson.is_said_by(headers):
        decode_query({})  # which refuses: the short way knows of no query, and that is where the model is
    body = decode(text, gateway.job_limits.max_instances)
    exchange.model = body.model_name
    cache = preferences.cache_control(headers)
    asked = submission(body, gateway.job_limits, bulk=preferences.bulk(headers), cache=cache)
    return await _awaited(gateway, headers, await _accept(gateway, headers, asked, body.instances))


async def _accept(gateway: Gateway, headers: Headers, asked: Submission, instances: Sequence[Json]) -> Job:
    key = preferences.idempotency_key(headers)
    identity = None if key is None else Identity(key, asked)
    if len(instances) > CHUNK:
        chunks = _split(instances)
        if identity is None:
            return await gateway.jobs.submit_chunks(asked, chunks)
        return await gateway.jobs.submit_chunks(asked, identity.of(chunks), identity.key)
    if identity is not None:
        identity.add(encode(instances))
        asked = replace(asked, idempotency=identity.key())
    return await gateway.jobs.submit(asked, instances)


async def _submit_lines(request: Request, gateway: Gateway, headers: Headers) -> Response:
    try:
        job = await _accept_lines(request, gateway, headers)
    except DispatchError as error:
        refusal = problem_answer(error, exchange_of(request).request_id)
        if b"expect" in headers or isinstance(error, DeadlineExceeded):  # the rest may never come
            refusal.headers = tuple({*refusal.headers, CLOSE})
        return refusal.response()
    return await respond(request, _awaited(gateway, headers, job))


async def _accept_lines(request: Request, gateway: Gateway, headers: Headers) -> Job:
    check_encoding(request)
    query = decode_query(request.query_params)
    exchange_of(request).model = query.model_name
    bulk, cache = preferences.bulk(headers, unsaid=True), preferences.cache_control(headers)
    asked = submission(query, gateway.job_limits, bulk=bulk, cache=cache)
    key = preferences.idempotency_key(headers)
    chunks = ndjson.chunks(
        ndjson.pieces(request),
        max_line=gateway.limits.max_body_bytes,
        max_instances=gateway.job_limits.max_instances,
    )
    if key is None:
        return await gateway.jobs.submit_chunks(asked, chunks)
    identity = Identity(key, asked)
    return await gateway.jobs.submit_chunks(asked, identity.of(chunks), identity.key)


async def _split(instances: Sequence[Json]) -> AsyncIterator[tuple[int, bytes]]:
    for start in range(0, len(instances), CHUNK):
        part = instances[start : start + CHUNK]
        yield len(part), encode(part)


@router.get("/jobs", **openapi_jobs.JOBS)
async def jobs(request: Request) -> Response:
    """Jobs, the newest first. Those that failed are there until they are replayed or forgotten."""
    gateway: Gateway = request.app.state.gateway
    query = request.query_params
    before = query.get("cursor")
    search = Search(
        _limit(query),
        before=None if before is None else _number("cursor", before),
        status=_status(query),
        model=query.get("model_name"),
    )
    page = await gateway.jobs.page(search)
    if page.next is None:
        return Answer(job_report.spell_list(page.jobs, None)).response()
    kept = {name: query[name] for name in ("status", "model_name", "limit") if name in query}
    following = f"{job_report.PATH}?{urlencode(kept | {'cursor': page.next})}"
    link = (b"link", f'<{following}>; rel="next"'.encode())
    return Answer(job_report.spell_list(page.jobs, following), headers=(link,)).response()


@router.get("/jobs/{id}", **openapi_jobs.JOB)  # noqa: FAST003  (FastAPI would document a 422 for it)
async def job(request: Request) -> Response:
    """One job; with `Prefer: wait=…` when it is over, or so many seconds later."""
    gateway: Gateway = request.app.state.gateway
    found = await gateway.jobs.get(request.path_params["id"])
    headers = preferences.by_name(request.scope["headers"])
    return await respond(request, _awaited(gateway, headers, found, accepting=False))


@router.delete("/jobs/{id}", **openapi_jobs.CANCEL)  # noqa: FAST003
async def cancel(request: Request) -> Response:
    """Cancel a job that is not over."""
    gateway: Gateway = request.app.state.gateway
    canceled = await gateway.jobs.cancel(request.path_params["id"])
    return Answer(await job_report.spell(gateway.jobs, canceled)).response()


@router.post("/jobs/{id}/replay", **openapi_jobs.REPLAY)  # noqa: FAST003
async def replay(request: Request) -> Response:
    """Work a failed job once more."""
    gateway: Gateway = request.app.state.gateway
    replayed = await gateway.jobs.replay(request.path_params["id"])
    return job_report.accepted(replayed).response()


@router.post("/jobs/replay", **openapi_jobs.REPLAY_ALL)
async def replay_all(request: Request) -> Response:
    """Work all failed jobs once more, or those of one model."""
    gateway: Gateway = request.app.state.gateway
    replayed = await while_connected(request, _replay_all(gateway, request.query_params.get("model_name")))
    return Answer(to_json(job_report.Replayed(replayed=replayed or 0))).response()


@router.post("/jobs/{id}/webhook", **openapi_jobs.WEBHOOK)  # noqa: FAST003
async def notify_again(request: Request) -> Response:
    """Call the webhook of a job that is over once more, now."""
    gateway: Gateway = request.app.state.gateway
    notified = await gateway.jobs.notify_again(request.path_params["id"])
    return Answer(await job_report.spell(gateway.jobs, notified), 202).response()


async def _replay_all(gateway: Gateway, model: str | None) -> int:
    replayed, before = 0, None
    while True:
        page = await gateway.jobs.page(Search(MOST, before, JobStatus.FAILED, model))
        for each in page.jobs:
            with contextlib.suppress(JobConflict, JobNotFound):  # somebody else was faster
                await gateway.jobs.replay(each.id)
                replayed += 1
        before = page.next
        if before is None:
            return replayed


async def _awaited(gateway: Gateway, headers: Headers, job: Job, *, accepting: bool = True) -> Answer:
    """`job`, after as much waiting for its end as the caller prefers."""
    seconds = preferences.wait(headers)
    if seconds is None:
        return job_report.accepted(job) if accepting else Answer(await job_report.spell(gateway.jobs, job))
    applied = min(seconds, int(gateway.limits.max_timeout))
    if not job.over:
        job = await gateway.jobs.wait(job.id, asyncio.get_running_loop().time() + applied)
    answer = job_report.accepted(job) if accepting else Answer(await job_report.spell(gateway.jobs, job))
    answer.headers = (*answer.headers, (b"preference-applied", b"wait=%d" % applied))
    return answer


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit", str(PAGE))
    if _NUMBER.fullmatch(text) is None or not 1 <= int(text) <= MOST:
        raise InvalidRequest(f"limit should be a number from 1 to {MOST}.")
    return int(text)


def _number(name: str, text: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise InvalidRequest(f"{name} should be a number, as an answer before has told it.")
    return int(text)


def _status(query: Mapping[str, str]) -> JobStatus | None:
    status = query.get("status")
    try:
        return None if status is None else JobStatus(status)
    except ValueError:
        raise InvalidRequest(f"status should be one of {', '.join(JobStatus)}.") from None
