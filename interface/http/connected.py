"""Answering on the ASGI way, as long as there is somebody to answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from starlette.responses import Response

from interface.http.answer import Answer
from interface.http.exchange import CLIENT_CLOSED_REQUEST

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request

T = TypeVar("T")


async def respond(request: Request, found: Answer | Coroutine[None, None, Answer]) -> Response:
    """The response with what an endpoint has `found`; work that is awaited ends when the caller leaves."""
    if isinstance(found, Answer):
        return found.response()
    awaited = await while_connected(request, found)
    return Response(status_code=CLIENT_CLOSED_REQUEST) if awaited is None else awaited.response()


async def while_connected(request: Request, work: Coroutine[None, None, T]) -> T | None:
    """The result of `work`, which is cancelled when the caller leaves first: then None."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
