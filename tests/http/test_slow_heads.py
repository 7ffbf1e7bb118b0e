"""Connections on which no request comes are closed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from interface.http import protocol
from tests.http.happened import happened
from tests.http.raw_caller import ANSWER, connected, post

if TYPE_CHECKING:
    import uvicorn


@pytest.fixture
def serving(serving: uvicorn.Server, monkeypatch: pytest.MonkeyPatch) -> uvicorn.Server:
    """The application on a real socket, with little patience."""
    monkeypatch.setattr(protocol, "HEAD_PATIENCE", 0.5)
    serving.config.timeout_keep_alive = 0.1  # type: ignore[assignment]
    return serving


async def test_a_connection_that_was_never_used_is_closed(serving: uvicorn.Server) -> None:
    begun = asyncio.get_running_loop().time()
    async with connected(serving) as caller:
        assert await caller.ended()

    assert 0.4 < asyncio.get_running_loop().time() - begun < 3.0


async def test_half_a_head_is_waited_for_so_long(serving: uvicorn.Server) -> None:
    async with connected(serving) as caller:
        caller.send(post()[:50])

        status, headers, problem = await caller.answer()

        assert (status, problem["status"], headers["connection"]) == (408, 408, "close")
        assert await caller.ended()


async def test_half_a_head_after_an_answer_is_waited_for_so_long(serving: uvicorn.Server) -> None:
    async with connected(serving) as caller:
        caller.send(post() + post()[:50])
        assert (await caller.answer())[2] == ANSWER
        begun = asyncio.get_running_loop().time()

        assert (await caller.answer())[0] == 408
        assert asyncio.get_running_loop().time() - begun > 0.4
        assert await caller.ended()


async def test_a_head_that_comes_in_time_is_answered(serving: uvicorn.Server) -> None:
    async with connected(serving) as caller:
        caller.send(post()[:50])
        await asyncio.sleep(0.2)  # longer than idle connections are kept
        caller.send(post()[50:])

        assert (await caller.answer())[2] == ANSWER


async def test_a_connection_that_is_gone_leaves_no_timer(serving: uvicorn.Server) -> None:
    async with connected(serving):
        await happened(lambda: serving.server_state.connections)
        (served,) = serving.server_state.connections
        assert isinstance(served, protocol.GatewayProtocol)
        assert served.timeout_keep_alive_task is not None
    await happened(lambda: not serving.server_state.connections)

    assert served.timeout_keep_alive_task is None
