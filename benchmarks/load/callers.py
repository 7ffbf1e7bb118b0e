"""A certain number of requests, each answered once: by many callers at the same time, or by one."""

from __future__ import annotations

import asyncio
import json
import resource
from http import HTTPStatus
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from benchmarks.process import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import IO

OPENED_AT_ONCE = 200  # connections; a server's backlog is short
PATIENCE = 120.0  # seconds for an answer


class Answer(NamedTuple):
    """What came back; status 0 where nothing did."""

    status: int
    body: bytes


def request(method: str, url: str, body: object = None) -> bytes:
    """The bytes of a request, with `body` in JSON."""
    parts = urlsplit(url)
    content = b"" if body is None else json.dumps(body).encode()
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    lines = [f"{method} {path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Length: {len(content)}"]
    return "\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode() + content


class Callers:
    """So many `connections` ask `requests` of one server, one at a time each, until all are answered.

    `answers` are in the order of the requests; `sent` is how many have been asked so far.
    """

    def __init__(self, url: str, requests: Sequence[bytes], connections: int) -> None:
        self._parts = urlsplit(url)
        self._requests = requests
        self._connections = min(connections, len(requests))
        self.answers = [Answer(0, b"")] * len(requests)
        self.sent = 0
        self._open = 0
        self._done = asyncio.Event()

    async def run(self) -> list[Answer]:
        """Ask them all."""
        loop = asyncio.get_running_loop()
        turn = asyncio.Semaphore(OPENED_AT_ONCE)

        async def connect() -> None:
            async with turn:
                await loop.create_connection(
                    lambda: _Caller(self), self._parts.hostname or "", self._parts.port or 0
                )

        await asyncio.gather(*(connect() for _ in range(self._connections)))
        await self._done.wait()
        return self.answers

    def next(self) -> tuple[int, bytes] | None:
        """The request whose turn it is, with its number."""
        if self.sent == len(self._requests):
            return None
        self.sent += 1
        return self.sent - 1, self._requests[self.sent - 1]

    def opened(self) -> None:
        """A caller is there."""
        self._open += 1

    def left(self) -> None:
        """A caller has nothing more to ask, or was cut off."""
        self._open -= 1
        if not self._open:
            self._done.set()


class _Caller(asyncio.Protocol):
    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._number = -1
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._callers.opened()
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._callers.left()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._callers.answers[self._number] = Answer(self._parser.get_status_code(), b"".join(self._body))
        self._ask()

    def _ask(self) -> None:
        following = self._callers.next()
        if following is None:
            self._transport.close()
            return
        self._number, asked = following
        self._body = []
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(asked)


def allow_connections(count: int) -> None:
    """Let this process, and what it starts from now on, hold so many. Raises BenchmarkError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        raise BenchmarkError(f"{count:,} open files are needed, and {hard:,} allowed: ulimit -Hn {count}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


def upload(url: str, lines: IO[bytes]) -> dict[str, Any]:
    """POST a file of JSON lines, and return the job."""
    connection = _connection(url)
    parts = urlsplit(url)
    try:
        connection.request(
            "POST", f"{parts.path}?{parts.query}", lines, {"Content-Type": "application/x-ndjson"}
        )
        return _job(connection)
    finally:
        connection.close()


def look(url: str) -> dict[str, Any]:
    """The job at `url`."""
    connection = _connection(url)
    try:
        connection.request("GET", urlsplit(url).path)
        return _job(connection)
    finally:
        connection.close()


def download(url: str) -> Iterator[bytes]:
    """The body at `url`, as it comes."""
    connection = _connection(url)
    try:
        connection.request("GET", urlsplit(url).path)
        answer = connection.getresponse()
        if answer.status != HTTPStatus.OK:
            raise BenchmarkError(f"{url} answers {answer.status}: {answer.read()[:500]!r}")
        while piece := answer.read(65_536):
            yield piece
    finally:
        connection.close()


def _connection(url: str) -> HTTPConnection:
    parts = urlsplit(url)
    return HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE, blocksize=65_536)


def _job(connection: HTTPConnection) -> dict[str, Any]:
    answer = connection.getresponse()
    said = answer.read()
    if answer.status not in {HTTPStatus.OK, HTTPStatus.ACCEPTED}:
        raise BenchmarkError(f"The gateway answers {answer.status}: {said[:500]!r}")
    job: dict[str, Any] = json.loads(said)
    return job
