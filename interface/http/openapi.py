"""What the OpenAPI document says of each route, errors and examples included.

Routes read their bodies themselves, so the document is written here;
schemathesis holds it against what the routes really do (tests/integration/test_openapi.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from starlette.responses import PlainTextResponse

from domain import errors
from domain.error_response import kind
from interface.http.dispatch_body import DispatchBody, PredictBody
from interface.http.job_body import JobBody
from interface.http.job_report import JobList, JobReport, Replayed
from interface.http.problem import MEDIA_TYPE, STATUS, TYPE_PREFIX, Problem
from interface.http.reports import (
    DispatchAnswer,
    HealthReport,
    Liveness,
    ModelList,
    ModelReport,
    PredictAnswer,
    StateReport,
)

if TYPE_CHECKING:
    from fastapi import FastAPI

SCHEMAS = "#/components/schemas/"

DESCRIPTION = """
The one door in front of a TorchServe fleet: ask for predictions here,
and the gateway finds a server that can answer.

Every error is `application/problem+json` (RFC 9457); its `type` is the path of a page that explains it.
"""

HEADERS = {
    "X-Request-Id": {"description": "The caller's, or a new one.", "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Where the time went, in milliseconds: queue, server, total.",
        "schema": {"type": "string"},
    },
}
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def content(model: type, example: Any = None) -> dict[str, Any]:  # noqa: ANN401  (any JSON)
    """A body of `model`."""
    shown: dict[str, Any] = {"schema": {"$ref": SCHEMAS + model.__name__}}
    if example is not None:
        shown["example"] = example
    return {"application/json": shown}


def answer(model: type, description: str, example: Any = None) -> dict[str, Any]:  # noqa: ANN401
    """An answer of `model`."""
    return {"description": description, "content": content(model, example), "headers": HEADERS}


def problems(*classes: type[errors.DispatchError]) -> dict[int | str, dict[str, Any]]:
    """One entry a status, with an example of each error that has it."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in classes:
        status = STATUS[error]
        entry = responses.setdefault(
            int(status),
            {
                "description": status.phrase,
                "headers": HEADERS | (RETRY_AFTER if status == 503 else {}),  # noqa: PLR2004
                "content": {MEDIA_TYPE: {"schema": {"$ref": SCHEMAS + "Problem"}, "examples": {}}},
            },
        )
        title = error.summary().rstrip(".")
        entry["content"][MEDIA_TYPE]["examples"][title] = {"value": problem_example(error, int(status))}
    return responses


def problem_example(error: type[errors.DispatchError], status: int) -> dict[str, Any]:
    detail = error.summary()
    return {
        "type": TYPE_PREFIX + kind(error),
        "title": detail.rstrip("."),
        "status": status,
        "detail": detail,
        "instance": "4f1c2e0a9d3b4c5e8f7a6b5c4d3e2f10",
        "error": detail,
    }


INTERNAL = problems(errors.InternalError)

PRIORITY = {
    "name": "Priority",
    "in": "header",
    "description": "`u=5`, `u=6` or `u=7` (RFC 9218): bulk work, which waits for other work.",
    "schema": {"type": "string"},
}
X_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "Names the request in answers and logs; made where it is left out.",
    "schema": {"type": "string"},
}

LIVE: dict[str, Any] = {"operation_id": "live", "responses": {200: answer(Liveness, "Alive.")} | INTERNAL}
HEALTH: dict[str, Any] = {
    "operation_id": "health",
    "responses": {200: answer(StateReport, "The state of every part.")} | INTERNAL,
}
READY: dict[str, Any] = {
    "operation_id": "ready",
    "responses": {
        200: answer(HealthReport, "Every required model can be answered."),
        503: answer(HealthReport, "Some required model cannot be answered; `reasons` say why.")
        | {"headers": HEADERS | RETRY_AFTER},
    }
    | INTERNAL,
}
MODELS: dict[str, Any] = {
    "operation_id": "models",
    "responses": {200: answer(ModelList, "Every model that is served.")} | INTERNAL,
}
MODEL: dict[str, Any] = {
    "operation_id": "model",
    "responses": {200: answer(ModelReport, "The model."), **problems(errors.ModelNotFound)} | INTERNAL,
    "openapi_extra": {
        "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    },
}


METRICS: dict[str, Any] = {
    "operation_id": "metrics",
    "responses": {
        200: {
            "description": "Metrics in Prometheus' text format.",
            "headers": HEADERS,
            "content": {"text/plain": {"schema": {"type": "string"}}},
        }
    }
    | INTERNAL,
    "response_class": PlainTextResponse,
}


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of `app`, made once."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            license_info=app.license_info,
        )
        schema.setdefault("components", {}).setdefault("schemas", {}).update(_schemas())
        app.openapi_schema = schema
    return app.openapi_schema


def _schemas() -> dict[str, Any]:
    taken, told = (
        (DispatchBody, JobBody, PredictBody),
        (
            DispatchAnswer,
            HealthReport,
            JobList,
            JobReport,
            Liveness,
            ModelList,
            ModelReport,
            PredictAnswer,
            Problem,
            Replayed,
            StateReport,
        ),
    )
    adapters: list[tuple[type, Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        *((model, "validation", TypeAdapter(model)) for model in taken),
        *((model, "serialization", TypeAdapter(model)) for model in told),
    ]
    _, document = TypeAdapter.json_schemas(adapters, ref_template=SCHEMAS + "{model}")
    definitions: dict[str, Any] = document["$defs"]
    return definitions
