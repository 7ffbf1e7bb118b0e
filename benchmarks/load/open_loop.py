"""Open-loop load: requests leave when they are due (Poisson), whether or not earlier ones are answered.

Latency counts from the moment a request was due, so a server that stalls cannot hide it
(Gil Tene's coordinated omission). The event loop's timers are good for a millisecond; `Sample.late` says
how late requests really left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from statistics import quantiles
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks.process import BenchmarkError
from benchmarks.results import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.servers.side import Side

MOST_CONNECTIONS = 4_000
PATIENCE = 5.0  # seconds that answers may come after the last request
OK = 200


def open_loop(
    side: Side,
    texts: Sequence[str],
    *,
    rate: float,
    seconds: float,
    seed: int,
    within: float | None = None,
) -> Sample:
    """`rate` requests a second for `seconds`; `within` is how soon an answer has to come to count as good.

    Goodput leaves out the first `within` seconds, in which queues fill, and what comes when all were sent:
    an overloaded server would otherwise get more time to answer than there was to ask.
    """
    load = _Load(side, seconds, within)
    arrivals = list(_arrivals(rate, seconds, seed))
    if len(arrivals) > len(texts):
        raise BenchmarkError(f"{len(arrivals)} requests need more than {len(texts)} texts.")
    requests = [load.request(text) for text in texts[: len(arrivals)]]
    before = side.cpu_seconds()
    uvloop.run(load.run(arrivals, requests))
    return load.sample(len(arrivals), side.cpu_seconds() - before if side.program else None)


def _arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    chance = random.Random(seed)  # noqa: S311  (a load, not a secret)
    at = chance.expovariate(rate)
    while at < seconds:
        yield at
        at += chance.expovariate(rate)


class _Load:
    """The requests of one run, and what became of them."""

    def __init__(self, side: Side, seconds: float, within: float | None) -> None:
        self._side = side
        self._parts = urlsplit(side.url)
        self._seconds = seconds
        self._within = within
        self._free: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._latencies: list[float] = []
        self._lateness: list[float] = []
        self._begun = self._end = 0.0
        self._good = 0
        self._unanswered = 0
        self._all_sent = False
        self._settled = asyncio.Event()

    def request(self, text: str) -> bytes:
        """The bytes of one request."""
        body = json.dumps(self._side.body(text)).encode()
        headers = {
            "Host": self._parts.netloc,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **self._side.headers,
        }
        lines = [
            f"POST {self._parts.path} HTTP/1.1",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body

    async def run(self, arrivals: Sequence[float], requests: Sequence[bytes]) -> None:
        """Send each request when it is due, and wait for the answers."""
        loop = asyncio.get_running_loop()
        begun = self._begun = loop.time() + 0.1
        self._end = begun + self._seconds
        for arrival, request in zip(arrivals, requests, strict=True):
            due = begun + arrival
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            self._lateness.append(loop.time() - due)
            self._send(request, due)
        self._all_sent = True
        if self._unanswered:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), PATIENCE)
        for connection in list(self._open):
            connection.close()
        for task in self._opening:
            task.cancel()

    def _send(self, request: bytes, due: float) -> None:
        if self._free:
            self._unanswered += 1
            self._free.pop().send(request, due)
        elif len(self._open) + len(self._opening) < MOST_CONNECTIONS:
            self._unanswered += 1
            task = asyncio.create_task(self._send_on_a_new_one(request, due))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _send_on_a_new_one(self, request: bytes, due: float) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), self._parts.hostname or "", self._parts.port or 0
            )
        except OSError:
            self._settle()  # it failed, like everything that is not answered
            return
        self._open.add(connection)
        connection.send(request, due)

    def answered(self, connection: _Connection, status: int, latency: float, *, reusable: bool) -> None:
        """An answer is complete."""
        self._settle()
        if status == OK:
            self._latencies.append(latency)
            self._good += self._counts(latency)
        if reusable:
            self._free.append(connection)
        else:
            connection.close()

    def lost(self, connection: _Connection, *, asked: bool) -> None:
        """A connection is gone, with a question on it or without."""
        if asked:
            self._settle()
        self._open.discard(connection)
        if connection in self._free:
            self._free.remove(connection)

    def _counts(self, latency: float) -> bool:
        if self._within is None:
            return False
        now = asyncio.get_running_loop().time()
        return latency <= self._within and self._begun + self._within < now <= self._end

    def _settle(self) -> None:
        self._unanswered -= 1
        if self._all_sent and not self._unanswered:
            self._settled.set()

    def sample(self, requests: int, cpu: float | None) -> Sample:
        """What became of `requests`; latencies are those of answers with status 200."""
        latencies = [*self._latencies] if len(self._latencies) > 1 else [PATIENCE, PATIENCE]
        hundredths = quantiles(latencies, n=100)
        return Sample(
            requests=requests,
            seconds=self._seconds,
            p50=hundredths[49],
            p99=hundredths[98],
            failed=requests - len(self._latencies),
            cpu=cpu,
            goodput=None if self._within is None else self._good / (self._seconds - self._within),
            late=quantiles(self._lateness, n=100)[98] if len(self._lateness) > 1 else None,
        )


class _Connection(asyncio.Protocol):
    """One keep-alive connection with one request at a time."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._due: float | None = None
        self._parser = httptools.HttpResponseParser(self)

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        self._load.lost(self, asked=self._due is not None)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._due is None:  # an interim answer
            return
        latency = asyncio.get_running_loop().time() - self._due
        self._due = None
        status, reusable = self._parser.get_status_code(), self._parser.should_keep_alive()
        self._parser = httptools.HttpResponseParser(self)
        self._load.answered(self, status, latency, reusable=reusable)
