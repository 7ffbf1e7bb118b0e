"""The real application on a gateway whose servers are fakes; its jobs are real, in a file of the test."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING

import httpx
import pytest
import uvicorn

from application.server import Server
from bootstrap.gateway import Gateway, assemble, with_jobs
from bootstrap.jobs import looked_after, open_shelf
from bootstrap.settings import (
    CachingSettings,
    HttpSettings,
    JobsSettings,
    ModelSettings,
    ServerSettings,
    Settings,
)
from interface import main
from interface.http.protocol import GatewayProtocol
from interface.main import create_app
from tests.fakes import FakeCache, FakeServer
from tests.http.happened import happened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fastapi import FastAPI

URL = "http://127.0.0.1:8080"


@pytest.fixture
def server() -> FakeServer:
    """The one model server; it serves `m`."""
    return FakeServer()


@pytest.fixture
def jobs_model() -> str:
    """The model of `/api/predict/`."""
    return "m"


@pytest.fixture
def jobs_timeout() -> float:
    """How long a job may take."""
    return 3_600.0


@pytest.fixture
def jobs_settings(tmp_path: Path, jobs_model: str, jobs_timeout: float) -> JobsSettings:
    path = tmp_path / "jobs.sqlite"
    return JobsSettings(path=path, default_model=jobs_model, max_instances=1_200, timeout=jobs_timeout)


@pytest.fixture
async def app(
    server: FakeServer, jobs_settings: JobsSettings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FastAPI]:
    monkeypatch.setenv("DISPATCHER_CONFIG", "no such file: the tests say all there is")
    settings = Settings(
        servers={"local": ServerSettings(url=URL)},
        defaults=ModelSettings(caching=CachingSettings(ttl=60.0)),
        models={"m": ModelSettings(caching=None)},
        http=HttpSettings(max_body_bytes=10_000, max_instances=10),
        jobs=jobs_settings,
    )
    app = create_app()
    models = assemble(
        settings, [Server("local", "127.0.0.1", 8080, server.predict, server.probe)], FakeCache()
    )
    async with open_shelf(settings.jobs) as shelf, looked_after(shelf, models.predictions, settings.jobs):
        app.state.gateway = with_jobs(models, shelf, settings)
        yield app


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def serving(app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[uvicorn.Server]:
    """The application on a real socket."""
    gateway = app.state.gateway

    @asynccontextmanager
    async def build(_settings: object) -> AsyncIterator[Gateway]:
        yield gateway

    monkeypatch.setattr(main, "load", object)
    monkeypatch.setattr(main, "build", build)
    config = uvicorn.Config(app, port=0, http=GatewayProtocol, log_config=None, server_header=False)
    server = uvicorn.Server(config)
    monkeypatch.setattr(server, "capture_signals", nullcontext)
    running = asyncio.create_task(server.serve())
    await happened(lambda: server.started)
    yield server
    server.should_exit = True
    await running


@pytest.fixture
async def caller(serving: uvicorn.Server) -> AsyncIterator[httpx.AsyncClient]:
    """A client over a real connection, which streams."""
    host, port = serving.servers[0].sockets[0].getsockname()[:2]
    async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=10) as client:
        yield client
