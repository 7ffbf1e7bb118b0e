"""`/problems/{kind}`: the page that a problem's `type` points to."""

from __future__ import annotations

import html
import inspect

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from interface.http.problem import KINDS, STATUS, TYPE_PREFIX

router = APIRouter(include_in_schema=False)


@router.get(TYPE_PREFIX + "{name}")
async def explain(name: str) -> HTMLResponse:
    """What this kind of problem means, and its HTTP status."""
    error = KINDS.get(name)
    if error is None:
        raise HTTPException(404, f"There is no problem of the kind {name!r}.")
    title = html.escape(error.summary().rstrip("."))
    text = html.escape(inspect.cleandoc(error.__doc__ or ""))
    status = STATUS[error]
    return HTMLResponse(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<h1>{title}</h1><p>HTTP {status.value} {status.phrase}</p><pre>{text}</pre>"
    )
