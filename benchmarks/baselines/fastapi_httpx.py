"""The ordinary asynchronous gateway: FastAPI, a pydantic model, one shared httpx.AsyncClient."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TORCHSERVE_URL = os.environ.get("TORCHSERVE_URL", "http://127.0.0.1:8080")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with httpx.AsyncClient(base_url=TORCHSERVE_URL, timeout=30) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    model_name: str
    instances: list[Any]


@app.post("/dispatch_model")
async def dispatch_model(question: Question) -> Any:  # noqa: ANN401  (whatever the model says)
    client: httpx.AsyncClient = app.state.client
    try:
        answer = await client.post(
            f"/predictions/{question.model_name}", json={"instances": question.instances}
        )
    except httpx.HTTPError as error:
        raise HTTPException(502, str(error)) from error
    if answer.is_error:
        raise HTTPException(answer.status_code, answer.text)
    return answer.json()
