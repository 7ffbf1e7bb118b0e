from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from domain.errors import ServerFault, ServerUnreachable
from infrastructure.torchserve.channel import Channel
from infrastructure.torchserve.exchange import Answer
from tests.unit.torchserve.raw_server import (
    Received,
    Reply,
    always,
    captured,
    channel_to,
    ok,
    one_by_one,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.unit.torchserve.raw_server import RawServer

Close = Literal["fin", "rst"]
CLOSES: list[Close] = ["fin", "rst"]
LENGTH = b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 \r\n\r\nhello"
CERTIFICATE = Path(__file__).parent / "loopback.pem"  # self-signed, for 127.0.0.1, and its key


async def answer_to(reply: Reply) -> Answer:
    async with serving(always(reply)) as server, channel_to(server.url) as channel:
        return await channel.post("/x", b"")


async def failure_of(reply: Reply, *, max_answer_bytes: int = 1000) -> tuple[type[BaseException], str, int]:
    """The error, and how many connections a second question needs: the first must be gone."""
    async with (
        serving(one_by_one(reply, ok(b"next"))) as server,
        channel_to(server.url, max_answer_bytes=max_answer_bytes) as channel,
    ):
        with pytest.raises((ServerFault, ServerUnreachable)) as raised:
            await channel.post("/x", b"")
        assert (await channel.post("/x", b"")).body == b"next"
    return type(raised.value), str(raised.value), server.connections


@asynccontextmanager
async def conversing(
    converse: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server for what RawServer does not do: its url."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await converse(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    for writer in writers:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


# --- what is an answer


@pytest.mark.parametrize("data", [LENGTH, CHUNKED])
async def test_an_answer_is_read_wherever_it_is_split(data: bytes) -> None:
    replies = one_by_one(*(Reply(data, split=i) for i in range(1, len(data))))
    async with serving(replies) as server, channel_to(server.url) as channel:
        for _ in range(1, len(data)):
            assert await channel.post("/x", b"") == Answer(200, b"hello")

    assert server.connections == 1


@pytest.mark.parametrize(
    ("data", "answer"),
    [
        (b"HTTP/1.1 200\r\ncontent-length: 1\r\n\r\nx", Answer(200, b"x")),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Answer(200, b"")),
        (b"HTTP/1.1 204 \r\n\r\n", Answer(204, b"")),
        (b"HTTP/1.1 304 \r\ncontent-length: 5\r\n\r\n", Answer(304, b"")),
        (b"HTTP/1.1 200 \r\ncontent-encoding: gzip\r\ncontent-length: 1\r\n\r\nx", Answer(200, b"x")),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\nx", Answer(200, b"x")),
    ],
)
async def test_after_an_answer_the_connection_carries_the_next(data: bytes, answer: Answer) -> None:
    async with serving(always(Reply(data))) as server, channel_to(server.url) as channel:
        for _ in range(3):
            assert await channel.post("/x", b"") == answer

    assert server.connections == 1


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 \r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        LENGTH + b"HTTP/1.1 200 \r\n",
        LENGTH + b"x",
    ],
)
async def test_after_an_answer_that_ends_the_connection_the_next_goes_over_another(data: bytes) -> None:
    async with serving(always(Reply(data))) as server, channel_to(server.url) as channel:
        for _ in range(3):
            assert await channel.post("/x", b"") == Answer(200, b"hello")
        await server.until(lambda: server.lost == [1, 2, 3])

    assert [r.connection for r in server.received] == [1, 2, 3]


@pytest.mark.parametrize("data", [UNTIL_CLOSE, b"\r\n" + UNTIL_CLOSE, UNTIL_CLOSE.replace(b"1.1", b"1.0")])
async def test_an_answer_of_no_stated_length_ends_with_its_connection(data: bytes) -> None:
    for split in range(1, len(data)):
        assert await answer_to(Reply(data, "fin", split)) == Answer(200, b"hello")


@pytest.mark.parametrize(
    "reply",
    [
        Reply(UNTIL_CLOSE, "rst"),
        Reply(b"HTTP/1.1 200 \r\nconnection: close\r\ncontent-length: 6\r\n\r\nhello", "fin"),
        Reply(b"HTTP/1.1 200 \r\nContent-Length : 6\r\n\r\nhello", "fin"),
        Reply(CHUNKED[:-1], "fin"),
        Reply(b"HTTP/1.1 200 \r\ntransfer-encoding: gzip\r\n\r\nhello", "fin"),
        Reply(b"HTTP/1.1 200 \r\nx:", "fin"),
        Reply(b"\r\n\r\n", "fin"),
    ],
)
async def test_an_answer_that_breaks_off_is_none(reply: Reply) -> None:
    kind, message, connections = await failure_of(reply)

    assert kind is ServerFault
    assert "broke off" in message or "not HTTP" in message
    assert connections == 2


@pytest.mark.parametrize(
    "data",
    [
        captured("handler_set_100").data,
        captured("handler_set_101").data,
        b"HTTP/1.1 100 \r\n\r\n" + LENGTH,
        b"HTTP/1.1 99 \r\ncontent-length: 0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 \r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxy",
        b"HTTP/1.1 200 \r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 \r\nx: " + b"x" * 70_000,
    ],
)
async def test_what_is_not_an_answer_is_an_error_at_once_and_ends_the_connection(data: bytes) -> None:
    kind, message, connections = await failure_of(Reply(data))

    assert (kind, connections) == (ServerFault, 2)
    assert "not HTTP" in message


@pytest.mark.parametrize(
    "head", [b"content-length: 1001\r\n\r\n", b"transfer-encoding: chunked\r\n\r\n3e9\r\n"]
)
async def test_a_body_over_its_bound_is_an_error_at_once_and_ends_the_connection(head: bytes) -> None:
    kind, message, connections = await failure_of(Reply(b"HTTP/1.1 200 \r\n" + head + b"x" * 1001, split=900))

    assert (kind, connections) == (ServerFault, 2)
    assert "larger than 1000 bytes" in message


async def test_an_answer_that_resets_the_connection_is_read_to_its_end() -> None:
    async with serving(always(captured("handler_raised"))) as server, channel_to(server.url) as channel:
        for _ in range(50):
            answer = await channel.post("/x", b"")
            assert b"Prediction failed" in answer.body

    assert server.connections == 50


async def test_a_refusal_that_comes_before_the_whole_request_was_sent_is_heard() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(captured("too_large").data)
        await writer.drain()
        writer.close()

    async with conversing(refuse) as url, channel_to(url) as channel:
        for _ in range(10):
            assert (await channel.post("/x", b"x" * 20_000_000)).status == 413


# --- connections that died while they were idle


async def post(channel: Channel, content: bytes = b"x") -> bytes:
    return (await channel.post("/x", content)).body


def closing_the_second(then: Close, data: bytes = b"") -> Callable[[Received], Awaitable[Reply]]:
    async def answer(request: Received) -> Reply:
        dies = request.body == b"second" and request.connection == 1
        return Reply(data, then) if dies else ok(request.body)

    return answer


@pytest.mark.parametrize("then", CLOSES)
async def test_a_request_that_meets_a_stale_connection_is_sent_again_on_a_new_one(then: Close) -> None:
    async with serving(closing_the_second(then)) as server, channel_to(server.url) as channel:
        await post(channel, b"first")
        assert await post(channel, b"second") == b"second"
        assert await post(channel, b"third") == b"third"

    sent = [(r.body, r.connection) for r in server.received]
    assert sent == [(b"first", 1), (b"second", 1), (b"second", 2), (b"third", 2)]


async def test_it_is_sent_again_on_a_new_connection_even_where_others_are_idle() -> None:
    gate = asyncio.Event()

    async def answer(request: Received) -> Reply:
        if request.body == b"first":
            await gate.wait()
        stale = request.body == b"second" and request.connection <= 2
        return Reply(b"", "rst") if stale else ok(request.body)

    async with serving(answer) as server, channel_to(server.url) as channel:
        both = asyncio.gather(post(channel, b"first"), post(channel, b"first"))
        await server.until(lambda: len(server.received) == 2)
        gate.set()
        await both
        assert await post(channel, b"second") == b"second"
        await server.until(lambda: sorted(server.lost) == [1, 2])

    assert server.received[-1].connection == 3


@pytest.mark.parametrize("then", CLOSES)
@pytest.mark.parametrize("data", [b"\r", b"H", b"HTTP/1.1 200 \r\n", LENGTH[:-1]])
async def test_it_is_not_sent_again_where_any_byte_of_an_answer_came(then: Close, data: bytes) -> None:
    async with serving(closing_the_second(then, data)) as server, channel_to(server.url) as channel:
        await post(channel, b"first")
        with pytest.raises(ServerFault, match="broke off"):
            await post(channel, b"second")

    assert len(server.received) == 2


@pytest.mark.parametrize("then", CLOSES)
async def test_it_is_not_sent_again_where_the_connection_was_new(then: Close) -> None:
    async with serving(always(Reply(b"", then))) as server, channel_to(server.url) as channel:
        with pytest.raises(ServerUnreachable, match="before it answered"):
            await post(channel)

    assert len(server.received) == 1


async def test_it_is_sent_again_once() -> None:
    dead = Reply(b"", "rst")
    async with serving(one_by_one(ok(b""), dead, dead)) as server, channel_to(server.url) as channel:
        await post(channel)
        with pytest.raises(ServerUnreachable, match="before it answered"):
            await post(channel)

    assert len(server.received) == 3


@pytest.mark.parametrize("then", CLOSES)
async def test_a_connection_that_is_seen_to_die_while_idle_is_not_used(then: Close) -> None:
    async with serving(always(Reply(ok(b"x").data, then))) as server, channel_to(server.url) as channel:
        await post(channel)
        await gone(channel)
        await post(channel)

    assert len(server.received) == 2


async def gone(channel: Channel) -> None:
    async with asyncio.timeout(5):
        await asyncio.wait([connection.lost for connection in channel._open])


async def test_bytes_that_nobody_asked_for_are_never_an_answer() -> None:
    late = asyncio.Event()

    async def speak_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(LENGTH)
        await late.wait()
        writer.write(LENGTH.replace(b"hello", b"ghost"))
        await reader.read()

    async with conversing(speak_twice) as url, channel_to(url) as channel:
        assert await post(channel, b"") == b"hello"
        late.set()
        await gone(channel)
        assert await post(channel, b"") == b"hello"


# --- callers who leave


async def left(server: RawServer, asking: asyncio.Task[bytes]) -> None:
    await server.until(lambda: len(server.received) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await server.until(lambda: server.lost == [1])


async def test_a_late_answer_is_never_read_as_the_next_ones() -> None:
    async def slow_first(request: Received) -> Reply:
        if request.body == b"first":
            await server.until(lambda: len(server.received) == 2)
        return ok(request.body)

    async with serving(slow_first) as server, channel_to(server.url) as channel:
        await left(server, asyncio.create_task(post(channel, b"first")))
        assert await post(channel, b"second") == b"second"

    assert server.connections == 2


async def test_a_caller_that_leaves_amid_an_answer_closes_the_connection() -> None:
    async with serving(always(Reply(LENGTH[:-1]))) as server, channel_to(server.url) as channel:
        await left(server, asyncio.create_task(post(channel)))


async def test_a_caller_that_leaves_as_its_answer_comes_does_not_disturb_the_next() -> None:
    async with serving(always(ok(b"x"))) as server, channel_to(server.url) as channel:
        await post(channel)
        (connection,) = channel._idle
        first = asyncio.create_task(post(channel))
        await asyncio.sleep(0)
        connection.data_received(LENGTH)  # and before its caller wakes, the next has the connection
        second = asyncio.create_task(post(channel))
        first.cancel()
        await asyncio.sleep(0)
        connection.data_received(LENGTH)

        assert await second == b"hello"


# --- how many


async def sign(request: Received) -> Reply:
    return ok(request.body)


def limited(url: str, connections: int) -> aclosing[Channel]:
    return aclosing(Channel(url, max_connections=connections))


async def test_who_finds_all_connections_busy_waits_in_turn() -> None:
    gate = asyncio.Semaphore(0)

    async def gated(request: Received) -> Reply:
        await gate.acquire()
        return ok(request.body)

    async with serving(gated) as server, limited(server.url, 2) as channel:
        asking = [asyncio.create_task(post(channel, b"%d" % i)) for i in range(6)]
        await server.until(lambda: len(server.received) == 2)
        for served in range(3, 7):
            gate.release()
            await server.until(lambda served=served: len(server.received) == served)  # type: ignore[misc]
        gate.release()
        gate.release()
        assert await asyncio.gather(*asking) == [b"0", b"1", b"2", b"3", b"4", b"5"]

    assert [r.body for r in server.received[2:]] == [b"2", b"3", b"4", b"5"]
    assert server.connections == 2


async def test_those_who_leave_while_they_wait_take_no_ones_turn() -> None:
    async with serving(sign) as server, limited(server.url, 1) as channel, asyncio.timeout(5):
        channel._busy = 1
        waiting = [asyncio.create_task(post(channel, each)) for each in (b"a", b"b", b"c")]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        channel._leave()
        waiting[1].cancel()  # whose turn has just come
        assert await waiting[2] == b"c"
        assert await post(channel, b"d") == b"d"

    assert [r.body for r in server.received] == [b"c", b"d"]


@pytest.mark.parametrize("reply", [Reply(b"", "rst"), Reply(b"SSH"), captured("handler_raised")])
async def test_a_failure_gives_its_place_back(reply: Reply) -> None:
    async with serving(always(reply)) as server, limited(server.url, 1) as channel, asyncio.timeout(5):
        await asyncio.gather(*(post(channel) for _ in range(5)), return_exceptions=True)

    assert len(server.received) == 5


async def test_a_connection_that_nobody_needs_is_closed() -> None:
    async with serving(always(ok(b"x"))) as server, aclosing(Channel(server.url, keepalive=0.05)) as channel:
        await post(channel)
        await server.until(lambda: server.lost == [1])
        assert await post(channel) == b"x"

    assert len(server.received) == 2


async def test_a_connection_that_is_busy_is_not_closed_however_long_it_takes() -> None:
    async def slow(request: Received) -> Reply:
        await asyncio.sleep(0.1)
        return ok(request.body)

    async with serving(slow) as server, aclosing(Channel(server.url, keepalive=0.01)) as channel:
        assert await post(channel) == b"x"


async def test_closing_ends_idle_connections_and_those_that_are_busy() -> None:
    async def answer(request: Received) -> Reply:
        if request.body == b"slow":
            await asyncio.Event().wait()
        return ok(request.body)

    async with serving(answer) as server, channel_to(server.url) as channel:
        slow = asyncio.create_task(post(channel, b"slow"))
        await server.until(lambda: len(server.received) == 1)
        await post(channel)
        await channel.aclose()
        with pytest.raises(ServerUnreachable):
            await slow
        await server.until(lambda: sorted(server.lost) == [1, 2])


# --- how it is reached


async def test_a_server_that_accepts_no_connection_is_unreachable_in_time() -> None:
    deaf = socket.create_server(("127.0.0.1", 0), backlog=0)
    url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
    with deaf, socket.create_connection(deaf.getsockname()):
        async with asyncio.timeout(5), aclosing(Channel(url, connect_timeout=0.05)) as channel:
            with pytest.raises(ServerUnreachable, match="accepts no connection in time"):
                await post(channel)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
async def test_a_server_that_is_not_there_is_unreachable(url: str) -> None:
    async with channel_to(url) as channel:
        with pytest.raises(ServerUnreachable, match="cannot be reached") as raised:
            await post(channel)

    assert "127.0.0.1" not in str(raised.value)


def certified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


async def test_https_is_spoken_with_a_server_whose_certificate_is_trusted() -> None:
    trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
    async with (
        serving(always(ok(b"x" * 100_000)), tls=certified()) as server,
        aclosing(Channel(server.url, tls=trusting)) as channel,
    ):
        for _ in range(3):
            assert await post(channel) == b"x" * 100_000

    assert server.connections == 1


async def test_a_server_whose_certificate_is_not_trusted_is_sent_nothing() -> None:
    async with serving(always(ok(b"x")), tls=certified()) as server, aclosing(Channel(server.url)) as channel:
        with pytest.raises(ServerUnreachable, match="cannot be reached"):
            await post(channel)

    assert server.received == []


# --- what is sent


async def test_the_key_is_sent_as_a_bearer_token_and_each_time_the_one_that_is_given() -> None:
    async with serving(always(ok(b""))) as server, channel_to(server.url) as channel:
        for key in ("a", "b", None):
            await channel.post("/x", b"", key)

    assert [r.headers.get("authorization") for r in server.received] == ["Bearer a", "Bearer b", None]


@pytest.mark.parametrize("evil", ["a\r\nx: y", "a\nb", "a b", "é", "", "a\0"])
async def test_nothing_is_sent_that_could_end_a_header(evil: str) -> None:
    async with serving(always(ok(b""))) as server, channel_to(server.url) as channel:
        with pytest.raises(ValueError, match="not fit for a header"):
            await channel.post("/x", b"", evil)
        with pytest.raises(ValueError, match="not fit for a header"):
            await channel.post(evil, b"")

    assert server.received == []
