from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import httpx
import pytest

from tests.unit.torchserve.raw_server import (
    RawServer,
    Received,
    Reply,
    always,
    captured,
    client,
    ok,
    one_by_one,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Callable

Close = Literal["fin", "rst"]


async def post(http: httpx.AsyncClient, server: RawServer, content: bytes = b"x") -> bytes:
    response = await http.post(server.url, content=content)
    return response.content


def closing_the_second(then: Close, data: bytes = b"") -> Callable[[Received], Reply]:
    def answer(request: Received) -> Reply:
        return (
            Reply(data, then) if request.body == b"second" and request.connection == 1 else ok(request.body)
        )

    return answer


def eventually(answer: Callable[[Received], Reply]) -> Callable[[Received], asyncio.Future[Reply]]:
    def reply(request: Received) -> asyncio.Future[Reply]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(answer(request))
        return future

    return reply


@pytest.mark.parametrize("then", ["fin", "rst"])
async def test_a_request_that_meets_a_stale_connection_is_sent_again_on_a_new_one(then: Close) -> None:
    async with serving(eventually(closing_the_second(then))) as server, client() as http:
        await post(http, server, b"first")
        assert await post(http, server, b"second") == b"second"

    assert [(r.body, r.connection) for r in server.received] == [
        (b"first", 1),
        (b"second", 1),
        (b"second", 2),
    ]


async def test_it_is_sent_again_on_a_new_connection_even_where_others_are_idle() -> None:
    gate = asyncio.Event()

    async def answer(request: Received) -> Reply:
        if request.body == b"first":
            await gate.wait()
        stale = request.body == b"second" and request.connection <= 2
        return Reply(b"", "rst") if stale else ok(request.body)

    async with serving(answer) as server, client() as http:
        both = asyncio.gather(post(http, server, b"first"), post(http, server, b"first"))
        await server.until(lambda: len(server.received) == 2)
        gate.set()
        await both
        assert await post(http, server, b"second") == b"second"

    assert server.received[-1].connection == 3


@pytest.mark.parametrize("then", ["fin", "rst"])
@pytest.mark.parametrize(
    "data", [b"H", b"HTTP/1.1 200 \r\n", b"HTTP/1.1 200 \r\ncontent-length: 9\r\n\r\nxx"]
)
async def test_it_is_not_sent_again_where_any_byte_of_an_answer_came(then: Close, data: bytes) -> None:
    async with serving(eventually(closing_the_second(then, data))) as server, client() as http:
        await post(http, server, b"first")
        with pytest.raises(httpx.TransportError):
            await post(http, server, b"second")

    assert len(server.received) == 2


@pytest.mark.parametrize("then", ["fin", "rst"])
async def test_it_is_not_sent_again_where_the_connection_was_new(then: Close) -> None:
    async with serving(always(Reply(b"", then))) as server, client() as http:
        with pytest.raises(httpx.ReadError):
            await post(http, server)

    assert len(server.received) == 1


async def test_it_is_sent_again_once() -> None:
    dead = Reply(b"", "rst")
    async with serving(one_by_one(ok(b""), dead, dead)) as server, client() as http:
        await post(http, server)
        with pytest.raises(httpx.ReadError):
            await post(http, server)

    assert len(server.received) == 3


async def test_an_answer_that_closes_the_connection_is_read_to_its_end() -> None:
    async with serving(always(captured("handler_raised"))) as server, client() as http:
        for _ in range(50):
            assert b"Prediction failed" in await post(http, server)

    assert server.connections == 50


async def test_a_late_answer_is_never_read_as_the_next_ones() -> None:
    async def slow_first(request: Received) -> Reply:
        if request.body == b"first":
            await server.until(lambda: len(server.received) == 2)
        return ok(request.body)

    async with serving(slow_first) as server, client() as http:
        first = asyncio.create_task(post(http, server, b"first"))
        await server.until(lambda: len(server.received) == 1)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await server.until(lambda: server.lost == [1])
        assert await post(http, server, b"second") == b"second"

    assert server.connections == 2


async def test_a_caller_that_leaves_amid_an_answer_closes_the_connection() -> None:
    half = Reply(b"HTTP/1.1 200 \r\ncontent-length: 9\r\n\r\nhalf")
    async with serving(always(half)) as server, client() as http:
        reading = asyncio.create_task(post(http, server))
        await server.until(lambda: len(server.received) == 1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await server.until(lambda: server.lost == [1])


@pytest.mark.parametrize("capture", ["handler_set_100", "handler_set_101"])
async def test_an_informational_answer_is_an_error_at_once(capture: str) -> None:
    async with serving(always(captured(capture))) as server, client() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await post(http, server)
        await server.until(lambda: server.lost == [1])


async def test_no_cookie_is_kept_and_no_redirect_followed() -> None:
    moved = Reply(b"HTTP/1.1 302 \r\nset-cookie: a=b\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n")
    async with serving(always(moved)) as server, client() as http:
        assert (await http.get(server.url)).status_code == 302
        assert (await http.get(server.url)).status_code == 302
        assert not http.cookies

    assert all("cookie" not in {name.lower() for name in r.headers} for r in server.received)
