"""The ordinary synchronous gateway: FastAPI runs it in its threads, one requests.Session is shared."""

from __future__ import annotations

import os
from typing import Any

import requests
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from requests.adapters import HTTPAdapter

TORCHSERVE_URL = os.environ.get("TORCHSERVE_URL", "http://127.0.0.1:8080")

app = FastAPI()
session = requests.Session()
session.mount("http://", HTTPAdapter(pool_maxsize=64))  # by default 10: FastAPI has 40 threads


class Question(BaseModel):
    model_name: str
    instances: list[Any]


@app.post("/dispatch_model")
def dispatch_model(question: Question) -> Any:  # noqa: ANN401  (whatever the model says)
    try:
        answer = session.post(
            f"{TORCHSERVE_URL}/predictions/{question.model_name}",
            json={"instances": question.instances},
            timeout=30,
        )
    except requests.RequestException as error:
        raise HTTPException(502, str(error)) from error
    if not answer.ok:
        raise HTTPException(answer.status_code, answer.text)
    return answer.json()
