"""A caller who writes HTTP byte by byte."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import uvicorn

BODY = b'{"model_name": "m", "instances": ["x"]}'
ANSWER = {"model_name": "m", "model_version": "1.0", "predictions": ["a:m/1.0:x"]}


class Caller:
    """One connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> tuple[int, dict[str, str], Any]:
        async with asyncio.timeout(5):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await self.reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, json.loads(body)

    async def ended(self) -> bool:
        async with asyncio.timeout(5):
            return await self.reader.read() == b""


def post(body: bytes = BODY, *headers: str, path: str = "/dispatch_model", version: str = "1.1") -> bytes:
    lines = [f"POST {path} HTTP/{version}", "host: gateway", *headers]
    if not any(line.startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def connected(server: uvicorn.Server) -> AsyncIterator[Caller]:
    """A connection to `server`, which is closed in the end."""
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield Caller(reader, writer)
    finally:
        writer.close()
