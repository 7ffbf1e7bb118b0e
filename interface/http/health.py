"""`/health/…`: alive, able to serve, and the state of every part."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from interface.http import openapi
from interface.http.reports import HealthReport, Liveness, ServerReport

if TYPE_CHECKING:
    from bootstrap.gateway import Gateway

router = APIRouter(tags=["health"])


@router.get("/health/live", **openapi.LIVE)
async def live() -> Response:
    """Whether the process answers. Asks nothing of any server: for restarts."""
    return Response(to_json(Liveness("ok")), media_type="application/json")


@router.get("/health/ready", **openapi.READY)
async def ready(request: Request) -> Response:
    """Whether every required model can be answered now, by asking the servers: for routing."""
    report = await _report(request)
    if report.status == "ok":
        return Response(to_json(report), media_type="application/json")
    headers = {"Retry-After": "1"}
    return Response(to_json(report), HTTPStatus.SERVICE_UNAVAILABLE, headers, "application/json")


@router.get("/health", **openapi.HEALTH)
async def health(request: Request) -> Response:
    """The state of every part, for people; 200 whatever it is."""
    return Response(to_json(await _report(request)), media_type="application/json")


async def _report(request: Request) -> HealthReport:
    gateway: Gateway = request.app.state.gateway
    found = await gateway.health.check()
    entries = await gateway.catalogue.models()
    return HealthReport(
        status="ok" if found.ready else "unavailable",
        reasons=list(found.reasons),
        servers={
            name: ServerReport(gateway.server_urls[name], state) for name, state in found.servers.items()
        },
        models={entry.name: entry.ready for entry in entries},
    )
