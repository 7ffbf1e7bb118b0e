"""What the OpenAPI document says of the routes for jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from domain import errors
from domain.job import JobStatus
from interface.http.job_body import LONGEST, JobBody
from interface.http.job_report import JobList, JobReport, Replayed
from interface.http.openapi import (
    HEADERS,
    INTERNAL,
    PRIORITY,
    X_REQUEST_ID,
    answer,
    content,
    problems,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXT = {"type": "string"}
_EVENT = {
    "type": "object",
    "properties": {
        "id": _TEXT,
        "event": {"enum": ["progress", *(each.value for each in JobStatus)]},
        "data": {"type": "string", "contentMediaType": "application/json", "description": "The job."},
    },
    "required": ["id", "event", "data"],
}
_ID = "6f1d2c3b-5a49-4e8f-9b7c-0d1e2f3a4b5c"
JOB_EXAMPLE = {
    "id": _ID,
    "status": "running",
    "model_name": "sentiment",
    "model_version": None,
    "created_at": "2026-01-02T03:04:05.678901Z",
    "started_at": "2026-01-02T03:04:05.680102Z",
    "completed_at": None,
    "expires_at": "2026-01-02T04:04:05.678901Z",
    "progress": {"done": 500, "failed": 0, "total": 10_000},
    "queue_position": None,
    "attempts": 1,
    "error": None,
    "urls": {
        "self": f"/jobs/{_ID}",
        "predictions": f"/jobs/{_ID}/predictions",
        "events": f"/jobs/{_ID}/events",
        "cancel": f"/jobs/{_ID}",
    },
    "webhook": None,
}
_LINES = (
    '{"prediction":{"label":"positive","score":0.9974}}\n{"prediction":{"label":"negative","score":0.98}}\n'
)


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


LOCATION = {"Location": _header("The path of the job.")}
_APPLIED = {"Preference-Applied": _header("`wait=…`: how many seconds were, where any were preferred.")}
_LINK = {"Link": _header('`<path>; rel="next"`: the older ones, where there are any.')}
_UNAVAILABLE = problems(errors.QueueUnavailable, errors.Overloaded) | INTERNAL
_UNKNOWN = problems(errors.JobNotFound)


def _parameter(where: str, name: str, description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "in": where,
        "description": description,
        "schema": schema,
        "required": where == "path",
    }


_PATH_ID = _parameter("path", "id", "A job's id.", {"type": "string", "minLength": 1})
_MODEL_NAME = _parameter("query", "model_name", "Only jobs of this model.", {"type": "string"})
_WAIT = _parameter(
    "header", "Prefer", "`wait=5`: answer when the job is over, or 5 seconds later.", {"type": "string"}
)
CACHE_CONTROL = _parameter(
    "header",
    "Cache-Control",
    "`no-cache`: ask the model; `no-store`: do not remember the answer.",
    {"type": "string"},
)
_NAME = {"type": "string", "minLength": 1, "maxLength": 256}


def ok(model: type, description: str, example: Any = None, **headers: Any) -> dict[str, Any]:  # noqa: ANN401
    found = answer(model, description, example)
    return found | {"headers": HEADERS | headers}


def _stream(
    media_type: str, description: str, example: str, schema: Mapping[str, Any] = _TEXT
) -> dict[str, Any]:
    shown = {media_type: {"schema": schema, "example": example}}
    return {"description": description, "content": shown, "headers": HEADERS}


SUBMIT: dict[str, Any] = {
    "operation_id": "submit_job",
    "summary": "Submit a job",
    "responses": {
        202: ok(JobReport, "Accepted: it is recorded and queued.", JOB_EXAMPLE, **LOCATION, **_APPLIED),
        200: ok(JobReport, "Accepted, and over already.", None, **LOCATION, **_APPLIED),
        **problems(
            errors.MalformedRequest,
            errors.InvalidRequest,
            errors.PayloadTooLarge,
            errors.EncodingNotSupported,
            errors.ModelNotFound,
            errors.VersionNotFound,
            errors.DeadlineExceeded,
            errors.QueueUnavailable,
            errors.Overloaded,
        ),
        **INTERNAL,
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": content(
                JobBody,
                {"model_name": "sentiment", "instances": ["I loved it.", "Boring."], "timeout": 600},
            )
            | {
                "application/x-ndjson": {
                    "schema": {
                        "type": "string",
                        "description": "One instance on each line; the model is named in the query.",
                    },
                    "example": '"I loved it."\n{"text": "Boring."}\n',
                }
            },
        },
        "parameters": [
            _parameter("query", "model_name", "For JSON lines: the model, which they need.", _NAME),
            _parameter("query", "model_version", "For JSON lines: its version.", _NAME),
            _parameter(
                "query",
                "timeout",
                "For JSON lines: seconds the job may take.",
                {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST},
            ),
            _parameter(
                "query", "webhook_url", "For JSON lines: who is told.", {"type": "string", "format": "uri"}
            ),
            _parameter(
                "header",
                "Idempotency-Key",
                "A name for this submission: sent again, it gives the job that was accepted first.",
                {"type": "string", "pattern": "^[!-~]{1,255}$"},
            ),
            _WAIT,
            CACHE_CONTROL,
            PRIORITY | {"description": f"{PRIORITY['description']} JSON lines are, where this says nothing."},
            X_REQUEST_ID,
        ],
    },
}
JOBS: dict[str, Any] = {
    "operation_id": "jobs",
    "summary": "List jobs",
    "responses": {
        200: ok(JobList, "Jobs, the newest first.", {"jobs": [JOB_EXAMPLE], "next": None}, **_LINK),
        **problems(errors.InvalidRequest),
        **_UNAVAILABLE,
    },
    "openapi_extra": {
        "parameters": [
            _parameter(
                "query",
                "status",
                "Only jobs of this status; `failed` are the dead letters.",
                {"type": "string", "enum": [each.value for each in JobStatus]},
            ),
            _MODEL_NAME,
            _parameter(
                "query", "limit", "How many at most.", {"type": "integer", "minimum": 1, "maximum": 100}
            ),
            _parameter("query", "cursor", "As in `next`.", {"type": "string", "pattern": "^[0-9]{1,15}$"}),
        ]
    },
}
JOB: dict[str, Any] = {
    "operation_id": "job",
    "summary": "Look at a job",
    "responses": {200: ok(JobReport, "The job.", JOB_EXAMPLE, **_APPLIED), **_UNKNOWN, **_UNAVAILABLE},
    "openapi_extra": {"parameters": [_PATH_ID, _WAIT]},
}
CANCEL: dict[str, Any] = {
    "operation_id": "cancel_job",
    "summary": "Cancel a job",
    "responses": {
        200: ok(JobReport, "It is canceled."),
        **_UNKNOWN,
        **problems(errors.JobConflict),
        **_UNAVAILABLE,
    },
    "openapi_extra": {"parameters": [_PATH_ID]},
}
PREDICTIONS: dict[str, Any] = {
    "operation_id": "job_predictions",
    "summary": "Stream a job's predictions",
    "responses": {
        200: _stream(
            "application/x-ndjson",
            'A line for each instance, in order: `{"prediction": …}` or `{"error": <problem>}`.',
            _LINES,
        ),
        **_UNKNOWN,
        **_UNAVAILABLE,
    },
    "openapi_extra": {"parameters": [_PATH_ID]},
}
EVENTS: dict[str, Any] = {
    "operation_id": "job_events",
    "summary": "Stream a job's events",
    "responses": {
        200: _stream(
            "text/event-stream",
            "`queued`, `running`, `progress`, and how it ended; the data is the job. It ends with the job.",
            'retry: 2000\n\nid: 0-1\nevent: queued\ndata: {"id": "…"}\n\n',
            _EVENT,
        ),
        204: {
            "description": "There is nothing after `Last-Event-ID`, and never will be.",
            "headers": HEADERS,
        },
        **_UNKNOWN,
        **_UNAVAILABLE,
    },
    "openapi_extra": {
        "parameters": [
            _PATH_ID,
            _parameter("header", "Last-Event-ID", "Only what came after this event.", {"type": "string"}),
        ]
    },
}
REPLAY: dict[str, Any] = {
    "operation_id": "replay_job",
    "summary": "Replay a failed job",
    "responses": {
        202: ok(JobReport, "It is queued once more.", None, **LOCATION),
        200: ok(JobReport, "The same, and it is over already.", None, **LOCATION),
        **_UNKNOWN,
        **problems(errors.JobConflict),
        **_UNAVAILABLE,
    },
    "openapi_extra": {"parameters": [_PATH_ID]},
}
REPLAY_ALL: dict[str, Any] = {
    "operation_id": "replay_jobs",
    "summary": "Replay all failed jobs",
    "responses": {200: ok(Replayed, "How many are queued once more.", {"replayed": 3}), **_UNAVAILABLE},
    "openapi_extra": {"parameters": [_MODEL_NAME]},
}
WEBHOOK: dict[str, Any] = {
    "operation_id": "notify_webhook",
    "summary": "Call a job's webhook again",
    "responses": {
        202: ok(JobReport, "It will be called; `webhook` in the job says what came of it."),
        **_UNKNOWN,
        **problems(errors.JobConflict),
        **_UNAVAILABLE,
    },
    "openapi_extra": {"parameters": [_PATH_ID]},
}
