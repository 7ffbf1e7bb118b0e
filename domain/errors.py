"""Every way a request can fail.

DispatchError
├── RequestRejected            the caller must change something; never retried, never counted against a server
│   ├── InvalidRequest           not what the contract says
│   │   └── MalformedRequest       not even JSON
│   ├── PayloadTooLarge
│   ├── EncodingNotSupported     the body is compressed
│   ├── ModelNotFound
│   ├── VersionNotFound
│   ├── JobNotFound
│   ├── JobConflict              the job is not in a state for that
│   └── InputRejectedByModel     what the model's handler said, passed on
├── DeadlineExceeded           the caller's time is over
├── Unavailable                refused before any work was done; may succeed later
│   ├── Overloaded
│   ├── NoServerAvailable        every server of the model is down or not ready
│   └── QueueUnavailable         the job could not be recorded and queued
├── InternalError              our own mistake
│   └── WorkerLost               whoever began the work died, again and again
└── ServerError                one attempt failed; another may succeed
    ├── ServerUnreachable
    ├── ServerTimeout
    ├── ServerBusy
    └── ServerFault

Whether to retry is the class, not a flag.
An error's default message is its docstring's first line.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one part of a body; `pointer` is a JSON pointer (RFC 6901), '' the whole."""

    pointer: str
    detail: str


class DispatchError(Exception):
    """The request could not be answered."""

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or self.summary())

    @classmethod
    def summary(cls) -> str:
        """The docstring's first line."""
        return inspect.cleandoc(cls.__doc__ or "").partition("\n")[0]


class RequestRejected(DispatchError):
    """The request has to change before it can be answered."""

    def __init__(self, detail: str | None = None, errors: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.errors = tuple(errors)


class InvalidRequest(RequestRejected):
    """The request is not valid."""


class MalformedRequest(InvalidRequest):
    """The request body is not JSON."""


class PayloadTooLarge(RequestRejected):
    """The request body is too large."""


class EncodingNotSupported(RequestRejected):
    """The request body is compressed, or encoded otherwise; only bodies as they are can be read."""


class ModelNotFound(RequestRejected):
    """No such model is served."""


class VersionNotFound(RequestRejected):
    """No such version of the model is served."""


class JobNotFound(RequestRejected):
    """No such job is known."""


class JobConflict(RequestRejected):
    """The job is not in a state in which this can be done."""


class InputRejectedByModel(RequestRejected):
    """The model refused the input.

    `code` is what the model's handler said, 400 to 499.
    """

    def __init__(self, detail: str | None = None, errors: Sequence[FieldError] = (), code: int = 422) -> None:
        super().__init__(detail, errors)
        self.code = code


class DeadlineExceeded(DispatchError):
    """The answer did not arrive within the time the caller allowed."""


class Unavailable(DispatchError):
    """The request was refused before any work was done; it may succeed later.

    `retry_after` is in seconds.
    """

    def __init__(self, detail: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """More requests are waiting than can be answered in time."""


class NoServerAvailable(Unavailable):
    """No server that serves this model is ready."""


class QueueUnavailable(Unavailable):
    """The job could not be recorded and queued; it was not accepted."""


class InternalError(DispatchError):
    """The dispatcher itself failed; its log has the cause, under this request's id."""


class WorkerLost(InternalError):
    """Every worker that began this job died before it was done."""


class ServerError(DispatchError):
    """A model server failed to answer."""


class ServerUnreachable(ServerError):
    """The model server could not be reached, or the connection broke."""


class ServerTimeout(ServerError):
    """The model server did not answer in time."""


class ServerBusy(ServerError):
    """The model server's queue is full, or no worker serves the model."""


class ServerFault(ServerError):
    """The model server failed on this request, or its answer makes no sense."""
