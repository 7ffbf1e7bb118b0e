"""`GET /metrics`: for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import Response

from interface.http import openapi

if TYPE_CHECKING:
    from bootstrap.gateway import Gateway

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

router = APIRouter()


@router.get("/metrics", **openapi.METRICS)
async def metrics(request: Request) -> Response:
    """How many jobs wait, and for how long, to scale workers by; and how many messages are dead."""
    gateway: Gateway = request.app.state.gateway
    return Response(await gateway.metrics(), media_type=MEDIA_TYPE)
