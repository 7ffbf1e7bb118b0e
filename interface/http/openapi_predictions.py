"""What the OpenAPI document says of the routes for predictions."""

from __future__ import annotations

from typing import Any

from interface.http.dispatch_body import PredictBody
from interface.http.job_report import JobReport
from interface.http.openapi import HEADERS, PRIORITY, SCHEMAS, X_REQUEST_ID, answer, content, problems
from interface.http.openapi_jobs import CACHE_CONTROL, JOB_EXAMPLE, LOCATION, ok
from interface.http.problem import MEDIA_TYPE, STATUS
from interface.http.reports import DispatchAnswer, PredictAnswer

PREDICTION = {
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
_ANSWER = {"model_name": "sentiment", "model_version": "1.0", "predictions": [PREDICTION]}
CACHE_STATUS = {
    "Cache-Status": {
        "description": "What the cache did (RFC 9211): hit or fwd, stored, ttl; only where caching is on.",
        "schema": {"type": "string"},
    }
}
MODELS_OWN = {
    "description": "A 4xx of the model's own handler, with its message.",
    "content": {MEDIA_TYPE: {"schema": {"$ref": SCHEMAS + "Problem"}}},
}
X_REQUEST_TIMEOUT = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds the caller waits at most; capped by configuration.",
    "schema": {"type": "number", "exclusiveMinimum": 0},
    "example": 5,
}

DISPATCH_MODEL: dict[str, Any] = {
    "operation_id": "dispatch_model",
    "tags": ["predictions"],
    "summary": "Ask a model for predictions",
    "responses": {
        200: answer(DispatchAnswer, "One prediction for each instance, in order.", _ANSWER)
        | {"headers": HEADERS | CACHE_STATUS},
        "4XX": MODELS_OWN,
        **problems(*STATUS),
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": SCHEMAS + "DispatchBody"},
                    "examples": _REQUESTS,
                }
            },
        },
        "parameters": [X_REQUEST_TIMEOUT, CACHE_CONTROL, PRIORITY, X_REQUEST_ID],
    },
}
PREDICT: dict[str, Any] = {
    "operation_id": "predict",
    "tags": ["predictions"],
    "summary": "Ask the default model about one text, through the queue",
    "responses": {
        200: ok(
            PredictAnswer,
            "The prediction.",
            {"model_name": "sentiment", "model_version": "1.0", "prediction": PREDICTION},
            **CACHE_STATUS,
        ),
        202: ok(JobReport, "There is no answer yet; the job goes on.", JOB_EXAMPLE, **LOCATION),
        "4XX": MODELS_OWN,
        **problems(*STATUS),
    },
    "openapi_extra": {
        "requestBody": {"required": True, "content": content(PredictBody, {"text": "Hey, what's up?"})},
        "parameters": [X_REQUEST_TIMEOUT, CACHE_CONTROL, PRIORITY, X_REQUEST_ID],
    },
}
