"""A gateway that is told to stop while many wait for jobs that nobody works: the real process."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.conftest import settings_for
from tests.integration.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import StartGateway
    from tests.integration.gate import Gate
    from tests.integration.processes import RunningGateway, RunningTorchServe
    from tests.integration.rabbitmq_server import RunningRabbitMQ
    from tests.integration.redis_server import RunningRedis

ASK = {"model_name": "sentiment", "instances": ["x"]}
PATIENT = {"prefer": "wait=100", "x-request-timeout": "100"}
NOBODY = {"SERVERS__LOCAL__URL": "http://127.0.0.1:9"}  # where no TorchServe is


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


@pytest.fixture(params=["embedded", "distributed"])
def gateway(request: pytest.FixtureRequest, start_gateway: StartGateway) -> RunningGateway:
    """One whose jobs nobody works."""
    if request.param == "embedded":
        return start_gateway(**NOBODY)
    redis: RunningRedis = request.getfixturevalue("own_redis")
    rabbitmq: RunningRabbitMQ = request.getfixturevalue("rabbitmq")
    return start_gateway(JOBS__BROKER=rabbitmq.url, JOBS__REDIS=redis.url, **NOBODY)


def test_all_who_wait_are_answered_and_the_gateway_is_gone_in_seconds(
    gateway: RunningGateway, threads: ThreadPoolExecutor
) -> None:
    job = httpx.post(f"{gateway.url}/jobs", json=ASK, timeout=30).json()

    def call(method: str, path: str, **more: Any) -> tuple[httpx.Response, float]:
        answer = httpx.request(method, gateway.url + path, headers=PATIENT, timeout=60, **more)
        return answer, time.monotonic()

    waiting = [
        threads.submit(call, "POST", "/api/predict/", json={"text": "y"}),
        threads.submit(call, "POST", "/jobs", json=ASK),
        threads.submit(call, "GET", job["urls"]["self"]),
        threads.submit(call, "GET", job["urls"]["events"]),
    ]
    until(lambda: len(gateway.get("/jobs").json()["jobs"]) >= 3, "three jobs")
    time.sleep(0.2)  # which nobody tells of: that the others are there, too
    assert not any(each.done() for each in waiting)

    told = time.monotonic()
    code = gateway.process.stop()
    stopped = time.monotonic()
    predicting, submitting, reading, listening = [each.result()[0] for each in waiting]

    assert max(each.result()[1] for each in waiting) - told < 2
    assert (code, stopped - told < 4) == (0, True)
    assert [each.status_code for each in (predicting, submitting)] == [202, 202]
    assert all(each.headers["location"].startswith("/jobs/") for each in (predicting, submitting))
    assert reading.json()["completed_at"] is None
    assert "event: queued" in listening.text
    assert "Traceback" not in gateway.process.last_words()


def test_what_is_in_flight_is_answered_while_the_gateway_stops(
    start_gateway: StartGateway, torchserve: RunningTorchServe, gate: Gate, threads: ThreadPoolExecutor
) -> None:
    gateway = start_gateway(**settings_for(torchserve))
    asking = threads.submit(gateway.ask, "faulty", gate.held())
    gate.until_begun()

    stopping = threads.submit(gateway.process.stop)
    time.sleep(2)  # longer than anybody waits for a job
    gate.open()

    assert asking.result().status_code == httpx.codes.OK
    assert stopping.result() == 0
