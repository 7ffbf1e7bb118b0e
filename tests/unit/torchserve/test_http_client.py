from __future__ import annotations

import httpx

from tests.unit.torchserve.raw_server import Reply, always, captured, client, ok, serving


async def test_no_connection_is_kept_that_its_server_could_close_meanwhile() -> None:
    async with serving(always(ok(b""))) as server, client() as http:
        await http.get(server.url)
        await server.until(lambda: server.lost == [1])
        await http.get(server.url)

    assert server.connections == 2


async def test_an_answer_that_closes_the_connection_is_read_to_its_end() -> None:
    async with serving(always(captured("handler_raised"))) as server, client() as http:
        for _ in range(20):
            assert b"Prediction failed" in (await http.get(server.url)).content


async def test_no_cookie_is_kept_and_no_redirect_followed() -> None:
    moved = Reply(b"HTTP/1.1 302 \r\nset-cookie: a=b\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n")
    async with serving(always(moved)) as server, client() as http:
        assert (await http.get(server.url)).status_code == httpx.codes.FOUND
        assert (await http.get(server.url)).status_code == httpx.codes.FOUND
        assert not http.cookies

    assert all("cookie" not in {name.lower() for name in r.headers} for r in server.received)
