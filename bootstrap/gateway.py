"""The gateway, put together from its settings."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import httpx

from application.catalogue import Catalogue
from application.fleet import Fleet, Server
from application.health import HealthService
from application.pipeline import compose
from application.policies.attempt_timeout import AttemptTimeout
from application.policies.balancing import Balancing
from application.policies.deadline import Deadline
from application.prediction_service import PredictionService
from infrastructure import logs
from infrastructure.torchserve.client import TorchServeClient
from infrastructure.torchserve.connections import http_client
from infrastructure.torchserve.key_file import KeyFile
from infrastructure.torchserve.management import PingProbe, Reachable, TorchServeManagement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from bootstrap.settings import HttpSettings, ServerSettings, Settings
    from domain.ports import Predictor, ServerProbe

    Partials = Sequence[partial[Deadline] | partial[AttemptTimeout]]
    from domain.prediction import ModelRef

CONNECT_TIMEOUT = 2.0  # seconds; a server on the same network answers in milliseconds
MAX_CONNECTIONS = 1_000  # to all servers; who waits for one waits within its attempt's timeout


@dataclass(frozen=True, slots=True)
class Gateway:
    """What the interfaces call. `server_urls` are the configured addresses, by server name."""

    predictions: PredictionService
    catalogue: Catalogue
    health: HealthService
    fleet: Fleet
    limits: HttpSettings
    server_urls: Mapping[str, str]


@asynccontextmanager
async def build(settings: Settings) -> AsyncIterator[Gateway]:
    """A running gateway: it watches its servers until it is left."""
    logs.configure(settings.log.format, settings.log.level, access=settings.log.access)
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT)  # the rest is for the policies
    async with http_client(timeout=timeout, max_connections=MAX_CONNECTIONS) as http:
        servers = [_server(name, each, settings, http) for name, each in settings.servers.items()]
        gateway = assemble(settings, servers)
        health = settings.health
        watching = asyncio.create_task(gateway.fleet.watch(health.interval, health.interval_down))
        try:
            yield gateway
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


def assemble(settings: Settings, servers: Sequence[Server]) -> Gateway:
    """The gateway in front of `servers`, however these are reached."""
    fleet = Fleet(
        servers,
        observe=logs.log_event,
        canaries={name: m.canary for name, m in settings.models.items() if m.canary is not None},
        canary_timeout=settings.health.canary_timeout,
    )
    required = tuple(settings.models)
    return Gateway(
        predictions=PredictionService(fleet, partial(_pipeline, settings, fleet)),
        catalogue=Catalogue(fleet, required, partial(policy_names, settings)),
        health=HealthService(fleet, required),
        fleet=fleet,
        limits=settings.http,
        server_urls={name: str(each.url) for name, each in settings.servers.items()},
    )


def policy_names(settings: Settings, model: str) -> tuple[str, ...]:
    """The policies that a request for `model` passes, outermost first, with their numbers."""
    outer, attempt = _policies(settings, model)
    return (*map(_described, outer), f"Balancing(servers={len(settings.servers)})", *map(_described, attempt))


def _policies(settings: Settings, model: str) -> tuple[Partials, Partials]:
    """Those around balancing, and those around one attempt; the reason for its place beside each."""
    chosen = settings.model(model)
    return [
        # Nothing may outlive the caller, so everything is inside.
        partial(Deadline, default=chosen.timeout, cap=settings.http.max_timeout),
        # Balancing comes last: what follows concerns one server.
    ], [
        # One slow server must not eat the whole deadline; below balancing, so that a try is one server's.
        partial(AttemptTimeout, seconds=chosen.attempt_timeout),
    ]


def _pipeline(settings: Settings, fleet: Fleet, model: ModelRef) -> Predictor:
    outer, attempt = _policies(settings, model.name)
    balancing = Balancing(
        fleet,
        attempt=partial(compose, attempt),
        observe=logs.log_event,
        clock=time.monotonic,
        pick=random.sample,
    )
    return compose(outer, balancing)


def _described(policy: partial[Deadline] | partial[AttemptTimeout]) -> str:
    numbers = ", ".join(f"{name}={seconds:g} s" for name, seconds in policy.keywords.items())
    return f"{policy.func.__name__}({numbers})"


def _server(name: str, server: ServerSettings, settings: Settings, http: httpx.AsyncClient) -> Server:
    """A TorchServe, reached through `http`."""
    url, management_url = str(server.url), str(server.management_url) if server.management_url else None
    keys = KeyFile(server.key_file, http=http, management=management_url) if server.key_file else None
    client = TorchServeClient(http, url, keys=keys, payload=lambda model: settings.model(model).payload)
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
