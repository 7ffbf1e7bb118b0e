"""What the OpenAPI document says of each route, errors and examples included.

Routes read their bodies themselves, so the document is written here;
schemathesis holds it against what the routes really do (tests/integration/test_openapi.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from domain import errors
from domain.error_response import kind
from interface.http.dispatch_body import DispatchBody
from interface.http.problem import MEDIA_TYPE, STATUS, TYPE_PREFIX, Problem
from interface.http.reports import DispatchAnswer, HealthReport, Liveness, ModelList, ModelReport

if TYPE_CHECKING:
    from fastapi import FastAPI

_SCHEMAS = "#/components/schemas/"

DESCRIPTION = """
The one door in front of a TorchServe fleet: ask for predictions here,
and the gateway finds a server that can answer.

Every error is `application/problem+json` (RFC 9457); its `type` is the path of a page that explains it.
"""

_PREDICTION = {
    "label": "positive",
    "score": 0.9974,
    "scores": {"negative": 0.0011, "neutral": 0.0015, "positive": 0.9974},
}
_REQUESTS = {
    "two texts": {
        "value": {
            "model_name": "sentiment",
            "instances": ["I loved every minute of it.", "Utterly boring."],
        }
    },
    "one version, every key": {
        "value": {
            "model_name": "sentiment",
            "model_version": "1.0",
            "instances": [{"text": "What's new?"}],
            "parameters": {},
            "host": "127.0.0.1",
            "port": 8080,
        }
    },
}
_ANSWER = {"model_name": "sentiment", "model_version": "1.0", "predictions": [_PREDICTION]}
_HEADERS = {
    "X-Request-Id": {"description": "The caller's, or a new one.", "schema": {"type": "string"}},
    "Server-Timing": {
        "description": "Where the time went, in milliseconds: queue, server, total.",
        "schema": {"type": "string"},
    },
}
_CACHE_STATUS = {
    "Cache-Status": {
        "description": "What the cache did (RFC 9211): hit or fwd, stored, ttl; only where caching is on.",
        "schema": {"type": "string"},
    }
}
_RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}


def _json(model: type, example: Any = None) -> dict[str, Any]:  # noqa: ANN401  (any JSON)
    content: dict[str, Any] = {"schema": {"$ref": _SCHEMAS + model.__name__}}
    if example is not None:
        content["example"] = example
    return {"application/json": content}


def _answer(model: type, description: str, example: Any = None) -> dict[str, Any]:  # noqa: ANN401
    return {"description": description, "content": _json(model, example), "headers": _HEADERS}


def _problems(*classes: type[errors.DispatchError]) -> dict[int | str, dict[str, Any]]:
    """One entry a status, with an example of each error that has it."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in classes:
        status = STATUS[error]
        entry = responses.setdefault(
            int(status),
            {
                "description": status.phrase,
                "headers": _HEADERS | (_RETRY_AFTER if status == 503 else {}),  # noqa: PLR2004
                "content": {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + "Problem"}, "examples": {}}},
            },
        )
        title = error.summary().rstrip(".")
        entry["content"][MEDIA_TYPE]["examples"][title] = {"value": _problem_example(error, int(status))}
    return responses


def _problem_example(error: type[errors.DispatchError], status: int) -> dict[str, Any]:
    detail = error.summary()
    return {
        "type": TYPE_PREFIX + kind(error),
        "title": detail.rstrip("."),
        "status": status,
        "detail": detail,
        "instance": "4f1c2e0a9d3b4c5e8f7a6b5c4d3e2f10",
        "error": detail,
    }


_INTERNAL = _problems(errors.InternalError)

DISPATCH_MODEL: dict[str, Any] = {
    "operation_id": "dispatch_model",
    "tags": ["predictions"],
    "summary": "Ask a model for predictions",
    "responses": {
        200: _answer(DispatchAnswer, "One prediction for each instance, in order.", _ANSWER)
        | {"headers": _HEADERS | _CACHE_STATUS},
        "4XX": {
            "description": "A 4xx of the model's own handler, with its message.",
            "content": {MEDIA_TYPE: {"schema": {"$ref": _SCHEMAS + "Problem"}}},
        },
        **_problems(*STATUS),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _SCHEMAS + "DispatchBody"},
                    "examples": _REQUESTS,
                }
            },
        },
        "parameters": [
            {
                "name": "X-Request-Timeout",
                "in": "header",
                "description": "Seconds the caller waits at most; capped by configuration.",
                "schema": {"type": "number", "exclusiveMinimum": 0},
                "example": 5,
            },
            {
                "name": "Cache-Control",
                "in": "header",
                "description": "`no-cache`: ask the model; `no-store`: do not remember the answer.",
                "schema": {"type": "string"},
            },
            {
                "name": "Priority",
                "in": "header",
                "description": "`u=5`, `u=6` or `u=7` (RFC 9218): bulk work, which waits for other work.",
                "schema": {"type": "string"},
            },
            {
                "name": "X-Request-Id",
                "in": "header",
                "description": "Names the request in answers and logs; made where it is left out.",
                "schema": {"type": "string"},
            },
        ],
    },
}
LIVE: dict[str, Any] = {"operation_id": "live", "responses": {200: _answer(Liveness, "Alive.")} | _INTERNAL}
HEALTH: dict[str, Any] = {
    "operation_id": "health",
    "responses": {200: _answer(HealthReport, "The state of every part.")} | _INTERNAL,
}
READY: dict[str, Any] = {
    "operation_id": "ready",
    "responses": {
        200: _answer(HealthReport, "Every required model can be answered."),
        503: _answer(HealthReport, "Some required model cannot be answered; `reasons` say why.")
        | {"headers": _HEADERS | _RETRY_AFTER},
    }
    | _INTERNAL,
}
MODELS: dict[str, Any] = {
    "operation_id": "models",
    "responses": {200: _answer(ModelList, "Every model that is served.")} | _INTERNAL,
}
MODEL: dict[str, Any] = {
    "operation_id": "model",
    "responses": {200: _answer(ModelReport, "The model."), **_problems(errors.ModelNotFound)} | _INTERNAL,
    "openapi_extra": {
        "parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    },
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
    shown = (DispatchAnswer, HealthReport, Liveness, ModelList, ModelReport, Problem)
    adapters: list[tuple[type, Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        (DispatchBody, "validation", TypeAdapter(DispatchBody)),
        *((model, "serialization", TypeAdapter(model)) for model in shown),
    ]
    _, document = TypeAdapter.json_schemas(adapters, ref_template=_SCHEMAS + "{model}")
    definitions: dict[str, Any] = document["$defs"]
    return definitions
