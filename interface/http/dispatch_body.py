"""The body of `/dispatch_model`, and reading it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, TypeAdapter, ValidationError

from domain.errors import FieldError, InvalidRequest
from domain.finite import escape
from domain.prediction import ANY_SERVER, ServerAddress
from interface.http.body import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import ConfigDict
    from pydantic_core import ErrorDetails

MOST_ERRORS = 20  # of one body that are worth telling

Name = Annotated[str, Field(min_length=1, max_length=256)]


@dataclass(frozen=True, slots=True)
class DispatchBody:
    """What a caller of `/dispatch_model` sends."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    model_name: Annotated[Name, Field(description="A model that is served; see `GET /models`.")]
    instances: Annotated[list[Any], Field(min_length=1, description="Inputs, each of any JSON type.")]
    model_version: Annotated[Name | None, Field(description="Left out: the model's default version.")] = None
    parameters: Annotated[dict[str, Any], Field(description="Passed on to the model's handler.")] = field(
        default_factory=dict
    )
    host: Annotated[Name | None, Field(description="Only a configured server of this host may answer.")] = (
        None
    )
    port: Annotated[
        int | None,
        Field(strict=True, ge=1, le=65_535, description="Only a configured server of this port may answer."),
    ] = None

    @property
    def server(self) -> ServerAddress:
        """The one server the caller insists on, if any."""
        if self.host is None and self.port is None:
            return ANY_SERVER
        return ServerAddress(self.host, self.port)


_validate: Callable[[object], DispatchBody] = TypeAdapter(DispatchBody).validator.validate_python
_KEYS = tuple(each.name for each in fields(DispatchBody))
_KNOWN = frozenset(_KEYS)


def decode(text: bytes, max_instances: int) -> DispatchBody:
    """The body that `text` spells. Raises InvalidRequest with a pointer to each thing that is wrong."""
    value = parse_json(text)
    if isinstance(value, dict) and not value.keys() <= _KNOWN:
        unknown = [key for key in value if key not in _KNOWN]
        message = f"Unknown key. Known: {', '.join(_KEYS)}."  # before pydantic, which would list all of them
        raise InvalidRequest(message, [FieldError(f"/{escape(k)}", message) for k in unknown[:MOST_ERRORS]])
    try:
        body = _validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:MOST_ERRORS]
        errors = [FieldError(_pointer(each["loc"]), _message(each)) for each in found]
        message = f"The body is not valid: {errors[0].pointer or 'the whole'}: {errors[0].detail}."
        raise InvalidRequest(message, errors) from None
    if len(body.instances) > max_instances:
        message = f"At most {max_instances} instances are allowed in one request, not {len(body.instances)}."
        raise InvalidRequest(message, [FieldError("/instances", message)])
    return body


def _message(error: ErrorDetails) -> str:
    """The words of pydantic, but for the one case where they name a class of ours."""
    return "Input should be an object" if error["type"] == "dataclass_type" else error["msg"]


def _pointer(loc: tuple[int | str, ...]) -> str:
    return "".join(f"/{escape(str(step))}" for step in loc)
