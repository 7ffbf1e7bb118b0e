"""A job's record as the bytes that a store keeps."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import to_json

from domain.job import Failure, Job, JobStatus
from domain.prediction import CacheControl, ModelRef
from domain.webhook import Attempt, Delivery

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_NEVER = object()
_DEFAULTS = tuple(Job._field_defaults.get(name, _NEVER) for name in Job._fields)
_KNOWN: dict[type, dict[str, None]] = {Job: dict.fromkeys(Job._fields)} | {
    each: dict.fromkeys(f.name for f in fields(each)) for each in (Failure, Delivery, Attempt)
}


def encode(job: Job) -> bytes:
    """JSON of what differs from the defaults: a field that comes later does no harm to older records."""
    named = zip(Job._fields, job, _DEFAULTS, strict=True)
    record: dict[str, Any] = {name: value for name, value, default in named if value != default}
    if job.finished:
        record["finished"] = f"{job.finished:x}"  # a decimal number may have 4,300 digits, and takes long
    try:
        return to_json(record)
    except ValueError:  # half a surrogate pair, which a model may say
        return _ENCODER.encode(record).encode()


def decode(record: bytes) -> Job:
    """The job that was encoded. Raises ValueError where that makes no sense.

    What a newer version of us has added to it is left out.
    """
    try:
        values: dict[str, Any] = json.loads(record)
        for name, restore in _RESTORE:
            if name in values:
                values[name] = restore(values[name])
        return _made(Job, values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError("not the record of a job") from error


def _plain(value: object) -> object:
    """What json does not know."""
    if isinstance(value, Failure | Delivery | Attempt):
        return {name: getattr(value, name) for name in _KNOWN[type(value)]}
    message = f"no part of a job's record: {type(value)}"
    raise TypeError(message)


_ENCODER = json.JSONEncoder(separators=(",", ":"), default=_plain)


def _made(kind: type[T], values: dict[str, Any]) -> T:
    known = _KNOWN[kind]
    return kind(**{name: value for name, value in values.items() if name in known})


def _delivery(values: dict[str, Any]) -> Delivery:
    values["attempts"] = tuple(_made(Attempt, each) for each in values["attempts"])
    return _made(Delivery, values)


_RESTORE: tuple[tuple[str, Callable[[Any], object]], ...] = (
    ("model", lambda value: ModelRef(*value)),
    ("cache", lambda value: CacheControl(*value)),
    ("status", JobStatus),
    ("finished", lambda value: int(value, 16)),
    ("attempts", lambda value: {int(chunk): count for chunk, count in value.items()}),
    ("error", lambda value: _made(Failure, value)),
    ("webhook", _delivery),
)
