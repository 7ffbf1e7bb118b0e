"""What becomes of a job, as it comes: its predictions, line by line, and its events."""

from __future__ import annotations

import json
import re
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from application.job_reader import Interrupted
from domain.errors import JobNotFound
from domain.job import Failure, Job
from domain.job_events import events_after
from interface.http import job_report, openapi_jobs
from interface.http.exchange import exchange_of
from interface.http.problem import problem, recorded, spell

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from application.job_service import JobService
    from bootstrap.gateway import Gateway

LINES = "application/x-ndjson"
EVENTS = "text/event-stream"
RETRY = 2_000  # milliseconds until a client of events that was cut off comes back
UNBUFFERED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would gather it first

router = APIRouter(tags=["jobs"])

_EVENT_ID = re.compile(rb"([0-9]{1,9})-([0-9]{1,9})")
_ERROR = b'{"error"'


class _Stream(StreamingResponse):
    """Closes what it streams when the caller leaves.

    Interrupted, it is cut off, not ended: then the caller sees that it is not complete.
    """

    def __init__(self, content: AsyncGenerator[bytes, None], media_type: str) -> None:
        super().__init__(content, headers=UNBUFFERED, media_type=media_type)
        self._content = content

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._content):
            with suppress(Interrupted):  # the server closes a connection whose response has no end
                await super().__call__(scope, receive, send)


@router.get("/jobs/{id}/predictions", **openapi_jobs.PREDICTIONS)  # noqa: FAST003
async def predictions(request: Request) -> Response:
    """The outcome of each instance, in order, as soon as it and those before it are there."""
    jobs, job = await _found(request)
    if exchange_of(request).method == "HEAD":
        return Response(headers=UNBUFFERED, media_type=LINES)
    return _Stream(_predictions(jobs, job.id), LINES)


@router.get("/jobs/{id}/events", **openapi_jobs.EVENTS)  # noqa: FAST003
async def events(request: Request) -> Response:
    """Server-sent events: what happens to the job, from its beginning or after `Last-Event-ID`."""
    jobs, job = await _found(request)
    given = _EVENT_ID.fullmatch(dict(request.scope["headers"]).get(b"last-event-id", b""))
    last = (0, 0) if given is None else (int(given[1]), int(given[2]))
    if job.over and not events_after(job, last):
        return Response(status_code=204)  # which tells an EventSource not to come back
    if exchange_of(request).method == "HEAD":
        return Response(headers=UNBUFFERED, media_type=EVENTS)
    return _Stream(_events(jobs, job.id, last), EVENTS)


async def _found(request: Request) -> tuple[JobService, Job]:
    gateway: Gateway = request.app.state.gateway
    job = await gateway.jobs.get(request.path_params["id"])
    exchange_of(request).model = job.model.name
    return gateway.jobs, job


async def _predictions(jobs: JobService, job_id: str) -> AsyncGenerator[bytes, None]:
    async with aclosing(jobs.outcomes(job_id)) as outcomes:
        async for lines in outcomes:
            yield as_told(lines, job_report.path(job_id))


async def _events(jobs: JobService, job_id: str, last: tuple[int, int]) -> AsyncGenerator[bytes, None]:
    yield b"retry: %d\n\n" % RETRY
    async with aclosing(jobs.events(job_id, last)) as happened:
        try:
            async for each in happened:
                if each is None:
                    yield b":\n\n"  # the connection is alive
                    continue
                event, job = each
                data = await job_report.spell(jobs, job)
                yield b"id: %d-%d\nevent: %b\ndata: %b\n\n" % (*event.id, event.name.encode(), data)
        except JobNotFound:
            return  # it was forgotten meanwhile


def as_told(lines: bytes, instance: str) -> bytes:
    """Stored outcomes (asking.outcome_line) as callers see them: recorded failures as problems."""
    if not lines.startswith(_ERROR) and b"\n" + _ERROR not in lines:
        return lines
    told: dict[bytes, bytes] = {}  # many fail alike
    each = lines.splitlines(keepends=True)
    for line in each:
        if line.startswith(_ERROR) and line not in told:
            error = recorded(Failure(**json.loads(line)["error"]))
            told[line] = b'{"error":%b}\n' % spell(problem(error, instance))
    return b"".join(told.get(line, line) for line in each)
