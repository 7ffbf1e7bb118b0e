"""Domain errors as HTTP: the one table of statuses, and RFC 9457 bodies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from pydantic_core import to_json

from domain import errors
from domain.error_response import ErrorResponse, kind
from interface.http.answer import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from domain.job import Failure

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "/problems/"  # each is a page of the gateway itself
COME_BACK = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

STATUS: dict[type[errors.DispatchError], HTTPStatus] = {
    errors.MalformedRequest: HTTPStatus.BAD_REQUEST,
    errors.InvalidRequest: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.PayloadTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.EncodingNotSupported: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.ModelNotFound: HTTPStatus.NOT_FOUND,
    errors.VersionNotFound: HTTPStatus.NOT_FOUND,
    errors.JobNotFound: HTTPStatus.NOT_FOUND,
    errors.JobConflict: HTTPStatus.CONFLICT,
    errors.InputRejectedByModel: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    errors.Overloaded: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.NoServerAvailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.QueueUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.WorkerLost: HTTPStatus.INTERNAL_SERVER_ERROR,
    errors.ServerUnreachable: HTTPStatus.BAD_GATEWAY,
    errors.ServerTimeout: HTTPStatus.GATEWAY_TIMEOUT,
    errors.ServerBusy: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ServerFault: HTTPStatus.BAD_GATEWAY,
}


KINDS = {kind(error): error for error in STATUS}


@dataclass(frozen=True, slots=True)
class Pointer:
    """What is wrong with one part of the body; `pointer` is a JSON pointer (RFC 6901) as a fragment."""

    detail: str
    pointer: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Problem details (RFC 9457).

    `type` is the path of a page that explains this kind of problem, `instance` the request's id,
    or the path of the job that recorded it.
    `error` repeats the detail for Open Inference Protocol clients, which read only that.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    errors: tuple[Pointer, ...] = ()


def status_of(error: errors.DispatchError) -> int:
    """The HTTP status of `error`: a model's own 4xx is passed on, all else is in the table."""
    if isinstance(error, errors.InputRejectedByModel):
        return error.code
    return STATUS[type(error)]


def problem_answer(error: errors.DispatchError, request_id: str) -> Answer:
    """The answer for `error` to the request of this id."""
    return _respond(problem(error, request_id), _headers(error))


def problem(error: errors.DispatchError, instance: str) -> Problem:
    """`error` as it is told."""
    told = ErrorResponse.of(error, instance)
    detail = _spellable(told.detail)
    return Problem(
        type=TYPE_PREFIX + told.kind,
        title=told.title,
        status=status_of(error),
        detail=detail,
        instance=told.instance,
        error=detail,
        errors=tuple(
            Pointer(_spellable(each.detail), "#" + quote(each.pointer, safe="/~", errors="replace"))
            for each in told.errors
        ),
    )


def recorded(failure: Failure) -> errors.DispatchError:
    """The error that was recorded as `failure`."""
    error = KINDS.get(failure.kind, errors.InternalError)
    if issubclass(error, errors.InputRejectedByModel):
        return error(failure.detail, code=failure.code or HTTPStatus.UNPROCESSABLE_ENTITY)
    return error(failure.detail)


def spell(body: Problem) -> bytes:
    """`body` as JSON."""
    return to_json(body) if body.errors else to_json(body, exclude={"errors"})


def plain_problem(status: int, detail: str, request_id: str, headers: Mapping[str, str]) -> Answer:
    """The answer where the framework, not the domain, refused: an unknown path or method."""
    title = HTTPStatus(status).phrase
    body = Problem("about:blank", title, status, detail, request_id, error=detail)
    return _respond(body, headers)


def _spellable(text: str) -> str:
    """`text` with a ? for half a surrogate pair, which a model may say, and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def _headers(error: errors.DispatchError) -> dict[str, str]:
    if isinstance(error, errors.PayloadTooLarge):
        return {"Connection": "close"}  # the rest of the body is not read
    if isinstance(error, errors.EncodingNotSupported):
        return {"Accept-Encoding": "identity"}  # what would be taken (RFC 9110, 12.5.3)
    if isinstance(error, errors.Unavailable):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    return {"Retry-After": "1"} if status_of(error) in COME_BACK else {}


def _respond(body: Problem, headers: Mapping[str, str]) -> Answer:
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return Answer(spell(body), body.status, MEDIA_TYPE.encode(), raw)
