"""What callers see when the server is told to stop while they wait."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from application.job_watch import LAST_WAIT
from tests.fakes import FakeServer
from tests.http.happened import happened

if TYPE_CHECKING:
    import uvicorn

    from domain.prediction import PredictionRequest, PredictionResult

ASK: dict[str, Any] = {"model_name": "m", "instances": ["x"]}
TEXT = {"text": "x"}
PATIENT = {"prefer": "wait=100", "x-request-timeout": "100"}


class HeldServer(FakeServer):
    """Answers once its gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        self.asked.append(request)
        await self.gate.wait()
        return await super().predict(request)


@pytest.fixture
def server() -> HeldServer:
    return HeldServer()


async def stop(serving: uvicorn.Server) -> None:
    """Tell it to, and return when it has begun."""
    serving.should_exit = True
    await happened(lambda: not serving.servers[0].is_serving())


async def answered(answer: asyncio.Task[httpx.Response]) -> httpx.Response:
    async with asyncio.timeout(LAST_WAIT + 1):
        return await answer


@pytest.mark.parametrize("path", ["/api/predict/", "/api/predict/?asgi"])
async def test_who_waits_for_a_prediction_is_told_where_it_will_be(
    caller: httpx.AsyncClient, serving: uvicorn.Server, server: HeldServer, path: str
) -> None:
    asking = asyncio.create_task(caller.post(path, json=TEXT, headers=PATIENT))
    await happened(lambda: server.asked)

    await stop(serving)
    answer = await answered(asking)

    assert answer.status_code == 202
    assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/api/predict/", "/api/predict/?asgi"])
async def test_a_prediction_that_is_there_soon_is_waited_for(
    caller: httpx.AsyncClient, serving: uvicorn.Server, server: HeldServer, path: str
) -> None:
    asking = asyncio.create_task(caller.post(path, json=TEXT, headers=PATIENT))
    await happened(lambda: server.asked)

    await stop(serving)
    server.gate.set()

    assert (await answered(asking)).json()["prediction"] == "a:m/1.0:x"


async def test_who_prefers_to_wait_for_a_job_is_told_how_it_is(
    caller: httpx.AsyncClient, serving: uvicorn.Server, server: HeldServer
) -> None:
    submitting = asyncio.create_task(caller.post("/jobs", json=ASK, headers=PATIENT))
    await happened(lambda: server.asked)
    (job,) = (await caller.get("/jobs")).json()["jobs"]
    reading = asyncio.create_task(caller.get(job["urls"]["self"], headers=PATIENT))
    await asyncio.sleep(0.05)

    await stop(serving)
    submitted, read = await answered(submitting), await answered(reading)

    assert (submitted.status_code, submitted.headers["location"]) == (202, job["urls"]["self"])
    assert (read.status_code, read.json()["status"]) == (200, "running")


async def test_events_end_and_predictions_are_cut_off(
    caller: httpx.AsyncClient, serving: uvicorn.Server, caplog: pytest.LogCaptureFixture
) -> None:
    urls = (await caller.post("/jobs", json=ASK)).json()["urls"]
    events = asyncio.create_task(caller.get(urls["events"]))
    predictions = asyncio.create_task(caller.get(urls["predictions"]))
    await asyncio.sleep(0.05)

    await stop(serving)

    assert "event: succeeded" not in (await answered(events)).text
    with pytest.raises(httpx.RemoteProtocolError):
        await answered(predictions)
    assert not any(record.exc_info for record in caplog.records)  # nobody made a mistake


async def test_a_request_that_is_in_flight_is_waited_for(
    caller: httpx.AsyncClient, serving: uvicorn.Server, server: HeldServer
) -> None:
    asking = asyncio.create_task(caller.post("/dispatch_model", json=ASK))
    await happened(lambda: server.asked)

    await stop(serving)
    await asyncio.sleep(LAST_WAIT + 0.3)
    server.gate.set()

    assert (await asking).json()["predictions"] == ["a:m/1.0:x"]
