"""Answers to HTTP/1.0, which has neither chunks nor `100 Continue` (RFC 9112, 6.1; RFC 9110, 10.1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def unchunk(cycle: RequestResponseCycle) -> None:
    """Let the end of the connection be the end of an answer whose length is not told.

    uvicorn chunks an answer unless it knows a length: it is told of each piece's, as the piece comes.
    """
    inner = cycle.send

    async def send(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await inner(message)

    cycle.chunked_encoding = False
    cycle.waiting_for_100_continue = False
    cycle.send = send  # type: ignore[method-assign]  # the application gets what is there
