"""`/models`: what is served."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from pydantic_core import to_json
from starlette.responses import Response

from interface.http import openapi
from interface.http.reports import ModelList, ModelReport, VersionReport

if TYPE_CHECKING:
    from application.catalogue import ModelEntry
    from bootstrap.gateway import Gateway

router = APIRouter(tags=["models"])


@router.get("/models", **openapi.MODELS)
async def models(request: Request) -> Response:
    """Every model that is served: versions, default, servers, readiness and policies."""
    gateway: Gateway = request.app.state.gateway
    found = await gateway.catalogue.models()
    return Response(to_json(ModelList([_report(each) for each in found])), media_type="application/json")


@router.get("/models/{name}", **openapi.MODEL)  # noqa: FAST003  (FastAPI would document a 422 for it)
async def model(request: Request) -> Response:
    """One model."""
    gateway: Gateway = request.app.state.gateway
    return Response(
        to_json(_report(await gateway.catalogue.model(request.path_params["name"]))),
        media_type="application/json",
    )


def _report(entry: ModelEntry) -> ModelReport:
    versions = [
        VersionReport(v.version, v.default, v.ready, v.workers, dict(v.servers)) for v in entry.versions
    ]
    default = next((v.version for v in versions if v.default), None)
    return ModelReport(entry.name, default, entry.ready, versions, list(entry.policies))
