"""The gateway, put together from its settings."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import httpx

from application.catalogue import Catalogue
from application.fleet import Fleet
from application.health import Components, HealthService
from application.prediction_service import PredictionService
from application.server import Server
from bootstrap.jobs import looked_after, open_shelf
from bootstrap.pipeline import Surroundings, pipeline, policy_names
from infrastructure import logs
from infrastructure.memory_cache import MemoryCache
from infrastructure.prometheus import Metrics
from infrastructure.redis_cache import RedisCache
from infrastructure.redis_connection import RedisConnection
from infrastructure.redis_leases import RedisLeases
from infrastructure.torchserve.channel import CONNECT_TIMEOUT, Channel
from infrastructure.torchserve.client import TorchServeClient
from infrastructure.torchserve.http_client import http_client
from infrastructure.torchserve.key_file import KeyFile
from infrastructure.torchserve.management import PingProbe, Reachable, TorchServeManagement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from application.job_runner import JobRunner
    from application.job_service import JobService
    from bootstrap.jobs import Shelf
    from bootstrap.settings import HttpSettings, JobsSettings, ServerSettings, Settings
    from domain.ports import Component, Leases, PredictionCache, ServerProbe


@dataclass(frozen=True, slots=True)
class Models:
    """What answers requests. `server_urls` are the configured addresses, by server name.

    `shared_cache` is the Redis that remembers answers; None where this process does.
    """

    predictions: PredictionService
    catalogue: Catalogue
    health: HealthService
    fleet: Fleet
    limits: HttpSettings
    server_urls: Mapping[str, str]
    shared_cache: RedisCache | None


@dataclass(frozen=True, slots=True)
class Gateway(Models):
    """What the interfaces call."""

    jobs: JobService
    job_limits: JobsSettings
    components: Components
    metrics: Callable[[], Awaitable[bytes]]


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Gateway]:
    """A running gateway: it watches its servers, and looks after its jobs, until it is left."""
    async with (
        _running(settings) as models,
        open_shelf(settings.jobs) as shelf,
        looked_after(shelf, models.predictions, settings.jobs),
    ):
        gateway = with_jobs(models, shelf, settings)
        async with aclosing(gateway.components):
            yield gateway


@asynccontextmanager
async def build_worker(settings: Settings) -> AsyncIterator[JobRunner]:
    """Who works jobs, elsewhere than in the gateway."""
    async with _running(settings) as models, open_shelf(settings.jobs) as shelf:
        yield shelf.runner(models.predictions)


@asynccontextmanager
async def _running(settings: Settings) -> AsyncIterator[Models]:
    logs.configure(settings.log.format, settings.log.level, access=settings.log.access)
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT)  # the rest is for those who ask
    async with http_client(timeout=timeout) as http, AsyncExitStack() as stack:
        servers = [_server(name, each, settings, http, stack) for name, each in settings.servers.items()]
        models = assemble(settings, servers, *await stack.enter_async_context(_cache(settings)))
        health = settings.health
        watching = asyncio.create_task(models.fleet.watch(health.interval, health.interval_down))
        try:
            yield models
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def with_jobs(models: Models, shelf: Shelf, settings: Settings) -> Gateway:
    """The gateway whose jobs are on `shelf`; whoever makes it closes its `components`."""
    components, cache = Components(_components(models, shelf)), models.shared_cache
    return Gateway(
        **{each.name: getattr(models, each.name) for each in fields(models)},
        jobs=shelf.service(models.predictions),
        job_limits=settings.jobs,
        components=components,
        metrics=Metrics(
            shelf.records.store,
            partial(components.condition, "queue"),
            time.time,
            None if cache is None else lambda: cache.unanswered,
        ),
    )


def _components(models: Models, shelf: Shelf) -> dict[str, Component]:
    """By the names that `GET /health` has for them."""
    cache = models.shared_cache
    return dict(shelf.components) if cache is None else {"cache": cache, **shelf.components}


def assemble(
    settings: Settings,
    servers: Sequence[Server],
    cache: PredictionCache,
    leases: Leases | None = None,
    shared_cache: RedisCache | None = None,
) -> Models:
    """What answers requests for the models of `servers`, however these are reached."""
    fleet = Fleet(
        servers,
        observe=logs.log_event,
        canaries={name: m.canary for name, m in settings.models.items() if m.canary is not None},
        canary_timeout=settings.health.canary_timeout,
    )
    memory = cache if isinstance(cache, MemoryCache) else None
    around = Surroundings(fleet, cache, memory, leases, logs.log_event)
    required = tuple(settings.models)
    return Models(
        predictions=PredictionService(fleet, partial(pipeline, settings, around)),
        catalogue=Catalogue(fleet, required, partial(policy_names, settings)),
        health=HealthService(fleet, required),
        fleet=fleet,
        limits=settings.http,
        server_urls={name: str(each.url) for name, each in settings.servers.items()},
        shared_cache=shared_cache,
    )


@asynccontextmanager
async def _cache(
    settings: Settings,
) -> AsyncIterator[tuple[PredictionCache, Leases | None, RedisCache | None]]:
    """Where answers are remembered, and who may ask: in this process, or in the Redis that is configured."""
    chosen = settings.redis
    if chosen is None:
        yield MemoryCache(settings.cache.max_bytes), None, None
        return
    redis = RedisConnection(chosen.url.get_secret_value(), observe=logs.log_event, timeout=chosen.timeout)
    leases = RedisLeases(redis, ttl=chosen.lease)
    async with aclosing(redis), aclosing(leases):
        await redis.connect()  # or not: then its answers are missed until it is there
        cache = RedisCache(redis, max_value_bytes=chosen.max_value_bytes)
        yield cache, leases, cache


def _server(
    name: str,
    server: ServerSettings,
    settings: Settings,
    http: httpx.AsyncClient,
    stack: AsyncExitStack,
) -> Server:
    """A TorchServe: asked how it is through `http`, for predictions through a channel that `stack` closes."""
    url, management_url = str(server.url), str(server.management_url) if server.management_url else None
    keys = KeyFile(server.key_file, http=http, management=management_url) if server.key_file else None
    channel = Channel(url)
    stack.push_async_callback(channel.aclose)
    client = TorchServeClient(channel, keys=keys, payload=lru_cache(256)(settings.payload))
    seconds = settings.health.probe_timeout
    probe: ServerProbe
    if management_url is None:
        probe = PingProbe(http, url, settings.models, keys=keys, seconds=seconds)
    else:
        management = TorchServeManagement(http, management_url, keys=keys, seconds=seconds)
        probe = Reachable(management, http, url, keys=keys, seconds=seconds)
    host, port = server.url.host, server.url.port
    assert host is not None  # ServerUrl has both
    assert port is not None
    return Server(name, host, port, client, probe)
