"""A response before it has a carrier: a route of the application, or the short way."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic_core import PydanticSerializationError, to_json
from starlette.responses import Response

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    RawHeaders = Sequence[tuple[bytes, bytes]]

JSON = b"application/json"
CLOSE = (b"connection", b"close")


def spell(content: Mapping[str, object]) -> bytes:
    """`content` as JSON; half a surrogate pair, which a model may say, and UTF-8 cannot, is escaped."""
    try:
        return to_json(content)
    except PydanticSerializationError:
        return json.dumps(content, separators=(",", ":")).encode()


@dataclass(slots=True)
class Answer:
    """A whole response; the names of `headers` are in lower case."""

    body: bytes
    status: int = 200
    media_type: bytes = JSON
    headers: RawHeaders = ()

    def response(self) -> Response:
        """The same for an ASGI application."""
        response = Response(self.body, self.status, media_type=self.media_type.decode())
        response.raw_headers.extend(self.headers)
        return response
