"""What travels to a model's handler and back, in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic_core import PydanticSerializationError, from_json, to_json

from domain.errors import InvalidRequest
from domain.finite import overflows
from domain.prediction import Refusal

if TYPE_CHECKING:
    from domain.prediction import Json, Prediction, PredictionRequest

Payload: TypeAlias = Literal["instances", "body"]
"""What a model's handler takes: all instances in one request, or one bare instance a request."""

LONGEST_MESSAGE = 500  # characters of what a handler says that are passed on


def together(request: PredictionRequest) -> bytes:
    """`{"instances": […], "parameters": {…}}`, without parameters where there are none.

    Raises InvalidRequest.
    """
    body: dict[str, Json] = {"instances": request.instances}
    if request.parameters:
        body["parameters"] = request.parameters
    return encode(body)


def encode(value: Json) -> bytes:
    """Compact JSON. Raises InvalidRequest where it cannot be written: too deep, or not Unicode."""
    try:
        return to_json(value, fallback=_plain)
    except PydanticSerializationError as error:
        raise InvalidRequest("The instances cannot be written as JSON.") from error


def decode(body: bytes) -> Json:
    """Raises ValueError at anything but one strict JSON value whose numbers are finite."""
    value: Json = from_json(body, allow_inf_nan=False)
    if overflows(body):  # the parser makes infinity of 1e999
        raise ValueError("number out of range")
    return value


def decode_or_none(body: bytes) -> Json:
    """`decode`, and None at what is not strict JSON."""
    try:
        return decode(body)
    except ValueError:
        return None


def predictions(body: bytes, expected: int) -> tuple[Prediction, ...]:
    """Those of `{"predictions": […]}` or of a bare list.

    Raises ValueError unless there are `expected` of them, in strict JSON.
    """
    value = decode(body)
    found = value.get("predictions") if isinstance(value, dict) else value
    if not isinstance(found, list):
        raise ValueError("neither a list nor an object with a list of predictions")  # noqa: TRY004  the answer is wrong, not a caller's type
    if len(found) != expected:
        raise ValueError(f"{len(found)} predictions for {expected} instances")
    return tuple(map(prediction, found))


def prediction(value: Json) -> Prediction:
    """`value`, or the Refusal it is: exactly `{"error": {"code": 400 to 499, "message": "…"}}`."""
    if isinstance(value, dict) and "error" in value:
        match value:
            case {"error": {"code": int(code), "message": str(message), **more_inside}, **more} if (
                400 <= code <= 499 and not more_inside and not more  # noqa: PLR2004
            ):
                return Refusal(code, shortened(message))
    return value


def said(body: bytes) -> str | None:
    """What a handler's error says: TorchServe's `message`, an `error.message`, else the text itself.

    None where it says nothing, or what no caller should see: a web page, a stack trace.
    """
    match decode_or_none(body):
        case {"message": str(text)} | {"error": {"message": str(text)}} | {"error": str(text)} | str(text):
            pass
        case _:
            text = body[: 4 * LONGEST_MESSAGE].decode(errors="replace")  # bytes: at most 4 a character
    text = " ".join(text.split())
    hidden = not text or text.startswith("<") or "Traceback (most recent call last)" in text
    return None if hidden else shortened(text)


def shortened(text: str) -> str:
    """`text`, cut to 500 characters."""
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(type(value))
