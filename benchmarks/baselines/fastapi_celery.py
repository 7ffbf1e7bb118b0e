"""The usual FastAPI with Celery behind it: `delay()`, and `get()` in one of FastAPI's threads.

It is as durable as ours: a quorum queue with publisher confirms, late acknowledgement, Redis for results.
"""

from __future__ import annotations

import os
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import requests
from anyio.to_thread import current_default_thread_limiter
from celery import Celery  # type: ignore[import-untyped]
from celery.exceptions import TimeoutError as NoResult  # type: ignore[import-untyped]
from fastapi import FastAPI, HTTPException
from kombu.entity import Exchange, Queue
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TORCHSERVE_URL = os.environ.get("TORCHSERVE_URL", "http://127.0.0.1:8080")
BROKER_URL = os.environ.get("BROKER_URL", "amqp://guest:guest@127.0.0.1:5672//")
RESULTS_URL = os.environ.get("RESULTS_URL", "redis://127.0.0.1:6379/0")
MODEL = os.environ.get("MODEL", "m")
QUEUE = os.environ.get("QUEUE", "predict")
THREADS = 100  # by default FastAPI has 40
TIMEOUT = 30  # seconds

celery = Celery("predictions", broker=BROKER_URL, backend=RESULTS_URL)
celery.conf.update(
    broker_transport_options={"confirm_publish": True},
    broker_pool_limit=THREADS,  # by default 10, which callers in threads would wait for
    task_default_queue=QUEUE,
    task_queues=[
        Queue(  # type: ignore[no-untyped-call]
            QUEUE,
            Exchange(QUEUE, "direct"),  # type: ignore[no-untyped-call]
            routing_key=QUEUE,
            queue_arguments={"x-queue-type": "quorum"},
        )
    ],
    task_default_exchange=QUEUE,
    task_default_routing_key=QUEUE,
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    result_expires=600,
    worker_hijack_root_logger=False,
)

of_thread = threading.local()


@celery.task(name="predict")  # type: ignore[untyped-decorator]
def predict_in_worker(text: str) -> Any:  # noqa: ANN401  (whatever the model says)
    if not hasattr(of_thread, "session"):
        of_thread.session = requests.Session()
    answer = of_thread.session.post(
        f"{TORCHSERVE_URL}/predictions/{MODEL}", json={"instances": [text]}, timeout=TIMEOUT
    )
    answer.raise_for_status()
    return answer.json()["predictions"][0]


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    current_default_thread_limiter().total_tokens = THREADS
    yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    text: str


class Accepted(BaseModel):
    id: str


@app.post("/api/predict/")
def predict(question: Question) -> dict[str, Any]:
    result = predict_in_worker.delay(question.text)
    try:
        return {"prediction": result.get(timeout=TIMEOUT)}
    except NoResult as error:
        raise HTTPException(504, "no answer in time") from error
    except requests.RequestException as error:
        raise HTTPException(502, str(error)) from error


@app.post("/submit", status_code=202)
def submit(question: Question) -> Accepted:
    return Accepted(id=predict_in_worker.delay(question.text).id)
