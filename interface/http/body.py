"""Reading a request's body, and reading it as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic_core import from_json

from domain.errors import (
    EncodingNotSupported,
    FieldError,
    InvalidRequest,
    MalformedRequest,
    PayloadTooLarge,
)
from domain.finite import infinite_at, overflows

if TYPE_CHECKING:
    from starlette.requests import Request

    from domain.prediction import Json


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, of at most `limit` bytes.

    Raises PayloadTooLarge, as soon as it is known, EncodingNotSupported, and starlette's ClientDisconnect.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    chunks = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    check_encoding(request)  # now that nothing is left unread, and the connection can go on
    return b"".join(chunks)


def check_encoding(request: Request) -> None:
    """Raise EncodingNotSupported where the body is not sent as it is."""
    said = ",".join(request.headers.getlist("content-encoding"))
    if not {each.strip().lower() for each in said.split(",")} <= {"", "identity"}:
        raise EncodingNotSupported("Send the body as it is, without a Content-Encoding.")


def parse_json(text: bytes) -> Json:
    """The value of JSON `text`, strictly: UTF-8, no NaN, no number that a float cannot hold.

    Raises MalformedRequest where it is not JSON, InvalidRequest where it is not JSON we take.
    """
    try:
        value: Json = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise _refusal(text, str(error)) from None
    if overflows(text):
        message = "The number is too large for a 64-bit float."
        raise InvalidRequest(message, [FieldError(infinite_at(value), message)])
    return value


def _refusal(text: bytes, reason: str) -> InvalidRequest:
    if reason.startswith("recursion limit"):
        message = "The body is nested too deeply."
        return InvalidRequest(message, [FieldError("", message)])
    try:
        value: Json = from_json(text, allow_inf_nan=True)
    except ValueError:
        return MalformedRequest(f"The body is not JSON: {reason}.")
    message = "NaN and Infinity are not JSON numbers."
    return InvalidRequest(message, [FieldError(infinite_at(value), message)])


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The body is larger than {limit} bytes. Send fewer instances at a time.")
