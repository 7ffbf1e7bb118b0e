"""The real application on a gateway whose servers are fakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from application.fleet import Server
from bootstrap.gateway import assemble
from bootstrap.settings import CachingSettings, HttpSettings, ModelSettings, ServerSettings, Settings
from interface.main import create_app
from tests.fakes import FakeCache, FakeServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import FastAPI

URL = "http://127.0.0.1:8080"


@pytest.fixture
def server() -> FakeServer:
    """The one model server; it serves `m`."""
    return FakeServer()


@pytest.fixture
def app(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")
    settings = Settings(
        servers={"local": ServerSettings(url=URL)},
        defaults=ModelSettings(caching=CachingSettings(ttl=60.0)),
        models={"m": ModelSettings(caching=None)},
        http=HttpSettings(max_body_bytes=10_000, max_instances=10),
    )
    app = create_app()
    app.state.gateway = assemble(
        settings, [Server("local", "127.0.0.1", 8080, server.predict, server.probe)], FakeCache()
    )
    return app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client
