"""`/health/…`: alive, able to serve, and the state of every part."""

from __future__ import annotations

import asyncio
from dataclasses import fields
from http import HTTPStatus
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from interface.http import openapi
from interface.http.reports import ComponentReport, HealthReport, Liveness, ServerReport, StateReport

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
    report = await _report(request.app.state.gateway)
    if report.status == "ok":
        return Response(to_json(report), media_type="application/json")
    headers = {"Retry-After": "1"}
    return Response(to_json(report), HTTPStatus.SERVICE_UNAVAILABLE, headers, "application/json")


@router.get("/health", **openapi.HEALTH)
async def health(request: Request) -> Response:
    """The state of every part, for people; 200 whatever it is.

    `status` and `reasons` are those of `/health/ready`: predictions go on without the `components`.
    """
    gateway: Gateway = request.app.state.gateway
    report, conditions = await asyncio.gather(_report(gateway), gateway.components.conditions())
    told = StateReport(
        **{each.name: getattr(report, each.name) for each in fields(report)},
        components={
            name: ComponentReport(each.problem or "ok", dict(each.counts))
            for name, each in conditions.items()
        },
    )
    return Response(to_json(told), media_type="application/json")


async def _report(gateway: Gateway) -> HealthReport:
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
