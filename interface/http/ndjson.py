"""A body of JSON lines, as long as it may be, in chunks of a job."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from application.job_service import CHUNK
from domain.errors import DeadlineExceeded, FieldError, InvalidRequest, MalformedRequest, PayloadTooLarge
from interface.http.body import parse_json

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from interface.http.preferences import Headers

MEDIA_TYPES = frozenset({b"application/x-ndjson", b"application/ndjson", b"application/jsonl"})
PATIENCE = 60.0  # seconds in which nothing comes
MOST_BYTES = 33_554_432  # in one chunk: that much of the body is held in memory


def is_said_by(headers: Headers) -> bool:
    """Whether the body is to be lines of JSON."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower() in MEDIA_TYPES


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, however long it is.

    Raises DeadlineExceeded where it does not, and starlette's ClientDisconnect.
    """
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(PATIENCE):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise DeadlineExceeded(f"Nothing more of the body came for {PATIENCE:g} seconds.") from None
        yield piece


async def chunks(
    body: AsyncIterator[bytes], *, max_line: int, max_instances: int
) -> AsyncIterator[tuple[int, bytes]]:
    """The instances, one on each line that is not empty, as JSON lists with their lengths: CHUNK or the rest.

    Each line is checked, and joined as it is. Raises InvalidRequest with a pointer to the line (the first
    is 1), and PayloadTooLarge where a line has more than `max_line` bytes.
    """
    kept: list[bytes] = []
    number = total = size = 0
    async for lines in _lines(body, max_line):
        for line in lines:
            number += 1
            instance = line.strip(b" \t\r")
            if not instance:
                continue
            _check(instance, number)
            kept.append(instance)
            total, size = total + 1, size + len(instance)
            if total > max_instances:
                message = f"At most {max_instances} instances are allowed in one job."
                raise InvalidRequest(message, [FieldError(f"/{number}", message)])
            if size > MOST_BYTES:
                raise PayloadTooLarge(f"{len(kept)} lines up to line {number} are {size} bytes.{_ADVICE}")
            if len(kept) == CHUNK:
                yield CHUNK, _joined(kept)
                kept, size = [], 0
    if kept:
        yield len(kept), _joined(kept)
    if not total:
        raise InvalidRequest("The body has no instances; put one on each line.")


_ADVICE = f" Any {CHUNK} may be {MOST_BYTES} together: send fewer of them in one job."


async def _lines(body: AsyncIterator[bytes], limit: int) -> AsyncIterator[list[bytes]]:
    """All lines that end in each piece of the body, without their ends."""
    begun: list[bytes] = []  # the line whose end has not come
    size = 0
    async for piece in body:
        first, *others = piece.split(b"\n")
        begun.append(first)
        size += len(first)
        if max(size, *map(len, others), 0) > limit:
            raise PayloadTooLarge(f"A line is larger than {limit} bytes.")
        if others:
            lines = [b"".join(begun), *others]
            begun = [lines.pop()]
            size = len(begun[0])
            yield lines
    yield [b"".join(begun)]


def _check(instance: bytes, number: int) -> None:
    try:
        parse_json(instance)
    except MalformedRequest as error:
        reason = (
            str(error)
            .replace("The body is not JSON: ", "not JSON: ")
            .replace("at line 1 column", "at column")
        )
        raise InvalidRequest(f"Line {number}: {reason}", [FieldError(f"/{number}", reason)]) from None
    except InvalidRequest as error:
        errors = [FieldError(f"/{number}{each.pointer}", each.detail) for each in error.errors]
        raise InvalidRequest(f"Line {number}: {error}", errors) from None


def _joined(lines: list[bytes]) -> bytes:
    return b"[" + b",".join(lines) + b"]"
