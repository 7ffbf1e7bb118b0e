"""JSON into the values that routes take: with a pointer to each thing that is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from domain.errors import FieldError, InvalidRequest
from domain.finite import escape
from interface.http.body import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import DataclassInstance
    from pydantic import ConfigDict
    from pydantic_core import ErrorDetails

    from domain.prediction import Json

T = TypeVar("T", bound="DataclassInstance")

MOST_ERRORS = 20  # of one body that are worth telling

Name = Annotated[str, Field(min_length=1, max_length=256)]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What every JSON body has that asks a model about instances."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    model_name: Annotated[Name, Field(description="A model that is served; see `GET /models`.")]
    instances: Annotated[list[Any], Field(min_length=1, description="Inputs, each of any JSON type.")]
    model_version: Annotated[Name | None, Field(description="Left out: the model's default version.")] = None
    parameters: Annotated[dict[str, Any], Field(description="Passed on to the model's handler.")] = field(
        default_factory=dict
    )


class Decoder(Generic[T]):
    """Reads objects of `kind`, a dataclass that pydantic can validate; `source` is where they come from."""

    def __init__(self, kind: type[T], source: str = "body") -> None:
        self._source = source
        self._keys = tuple(each.name for each in fields(kind))
        self._known = frozenset(self._keys)
        self._validate: Callable[[object], T] = TypeAdapter(kind).validator.validate_python

    def decode(self, text: bytes) -> T:
        """What `text` spells. Raises InvalidRequest with a pointer to each thing that is wrong."""
        return self.check(parse_json(text))

    def check(self, value: Json) -> T:
        """The same of what was parsed already."""
        if isinstance(value, dict) and not value.keys() <= self._known:
            # Before pydantic, which would list all of them.
            unknown = [key for key in value if key not in self._known]
            message = f"Unknown key. Known: {', '.join(self._keys)}."
            errors = [FieldError(f"/{escape(key)}", message) for key in unknown[:MOST_ERRORS]]
            raise InvalidRequest(message, errors)
        try:
            return self._validate(value)
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)[:MOST_ERRORS]
            errors = [FieldError(_pointer(each["loc"]), _message(each)) for each in found]
            where = errors[0].pointer or "the whole"
            message = f"The {self._source} is not valid: {where}: {errors[0].detail}."
            raise InvalidRequest(message, errors) from None


def check_number(instances: Sequence[Any], most: int) -> None:
    """Raise InvalidRequest where there are more than `most`."""
    if len(instances) > most:
        message = f"At most {most} instances are allowed in one request, not {len(instances)}."
        raise InvalidRequest(message, [FieldError("/instances", message)])


def _message(error: ErrorDetails) -> str:
    """The words of pydantic, but for the one case where they name a class of ours."""
    return "Input should be an object" if error["type"] == "dataclass_type" else error["msg"]


def _pointer(loc: tuple[int | str, ...]) -> str:
    return "".join(f"/{escape(str(step))}" for step in loc)
