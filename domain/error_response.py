"""What a caller is told when there is no answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from domain.errors import FieldError, RequestRejected

if TYPE_CHECKING:
    from domain.errors import DispatchError


def kind(error: type[DispatchError]) -> str:
    """The stable name of a class of errors: `ModelNotFound` → `model-not-found`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "-", error.__name__).lower()


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """A failure in the caller's words, whatever protocol carries it.

    `kind` names the class of error and never changes; `instance` is the request's id.
    """

    kind: str
    title: str
    detail: str
    instance: str
    errors: tuple[FieldError, ...] = ()

    @classmethod
    def of(cls, error: DispatchError, instance: str) -> ErrorResponse:
        return cls(
            kind=kind(type(error)),
            title=error.summary().rstrip("."),
            detail=str(error),
            instance=instance,
            errors=error.errors if isinstance(error, RequestRejected) else (),
        )
