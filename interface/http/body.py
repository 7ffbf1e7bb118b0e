"""Reading a request's body, and reading it as JSON."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from pydantic_core import from_json

from domain.errors import (
    DeadlineExceeded,
    EncodingNotSupported,
    FieldError,
    InvalidRequest,
    MalformedRequest,
    PayloadTooLarge,
)
from domain.finite import infinite_at, overflows

if TYPE_CHECKING:
    from starlette.requests import Request

    from bootstrap.settings import HttpSettings
    from domain.prediction import Json


async def read_body(request: Request, limits: HttpSettings, deadline: float | None) -> bytes:
    """The whole body, until `deadline` of the loop's clock, where there is one, and within what is allowed.

    Raises PayloadTooLarge as soon as it is known, DeadlineExceeded, as a slow sender must come to an end,
    EncodingNotSupported, and starlette's ClientDisconnect.
    """
    until = asyncio.get_running_loop().time() + limits.max_timeout
    try:
        async with asyncio.timeout_at(until if deadline is None else min(deadline, until)):
            text = await _read(request, limits.max_body_bytes)
    except TimeoutError:
        raise DeadlineExceeded("The body did not arrive in time.") from None
    check_encoding(request)  # now that nothing is left unread, and the connection can go on
    return text


async def _read(request: Request, limit: int) -> bytes:
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
