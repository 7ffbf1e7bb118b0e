from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from application.asking import outcome_line
from application.job_service import CHUNK
from domain.errors import InputRejectedByModel, WorkerLost
from domain.job import Failure
from domain.prediction import PredictionResult, Refusal
from interface.http.job_streams import as_told
from tests.fakes import FakeServer
from tests.http.happened import happened

if TYPE_CHECKING:
    from fastapi import FastAPI

    from domain.prediction import PredictionRequest

ASK: dict[str, Any] = {"model_name": "m", "instances": ["x", "y"]}
WAIT = {"prefer": "wait=5"}


def test_only_what_failed_is_told_in_other_words() -> None:
    fine = outcome_line({"error": '\n{"error": 1}'})
    refused = outcome_line(Failure("input-rejected-by-model", "no", 418))
    lost = outcome_line(Failure.of(WorkerLost()))

    told = as_told(fine + refused + fine + lost + refused, "/jobs/j").splitlines(keepends=True)

    assert told[0] == told[2] == fine
    assert told[1] == told[4]
    assert json.loads(told[1])["error"] | {"title": ""} == {
        "type": "/problems/input-rejected-by-model",
        "title": "",
        "status": 418,
        "detail": "no",
        "instance": "/jobs/j",
        "error": "no",
    }
    assert json.loads(told[3])["error"]["status"] == 500
    assert as_told(fine, "/jobs/j") is fine


class PickyServer(FakeServer):
    """Refuses "no", and is slow when told to `hold`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        self.asked.append(request)
        if "hold" in request.instances:
            await self.gate.wait()
        if "whole" in request.instances:
            raise InputRejectedByModel("not with me", code=409)
        return PredictionResult(
            request.model, tuple(Refusal(422, "It is no.") if i == "no" else i for i in request.instances)
        )


@pytest.fixture
def server() -> PickyServer:
    return PickyServer()


async def job_of(caller: httpx.AsyncClient, *instances: Any, **headers: str) -> dict[str, Any]:
    answer = await caller.post("/jobs", json=ASK | {"instances": list(instances)}, headers=headers)
    job: dict[str, Any] = answer.json()
    return job


def ids_in(events: str) -> list[str]:
    return [line[4:] for line in events.splitlines() if line.startswith("id: ")]


async def test_each_instance_has_its_line_and_the_guilty_a_problem(caller: httpx.AsyncClient) -> None:
    job = await job_of(caller, "a", "no", "b", "whole", "c", prefer="wait=5")

    lines = (await caller.get(job["urls"]["predictions"])).text.splitlines()

    assert job["status"] == "succeeded"
    assert job["progress"] == {"done": 3, "failed": 2, "total": 5}
    assert [json.loads(lines[i]) for i in (0, 2, 4)] == [{"prediction": each} for each in "abc"]
    refused, whole = json.loads(lines[1])["error"], json.loads(lines[3])["error"]
    assert (refused["status"], refused["detail"], refused["instance"]) == (
        422,
        "It is no.",
        f"/jobs/{job['id']}",
    )
    assert (whole["status"], whole["type"]) == (409, "/problems/input-rejected-by-model")


async def test_predictions_come_in_order_and_as_they_are_there(
    caller: httpx.AsyncClient, server: PickyServer
) -> None:
    instances = [*range(2 * CHUNK), "hold"]
    instances[CHUNK] = "hold"  # the second chunk waits, the third, too
    job = await job_of(caller, *instances)
    read = []

    async with caller.stream("GET", job["urls"]["predictions"]) as answer:
        async for line in answer.aiter_lines():
            read.append(json.loads(line)["prediction"])
            if len(read) == CHUNK:
                assert not server.gate.is_set()
                server.gate.set()

    assert answer.headers["content-type"] == "application/x-ndjson"
    assert read == instances


async def test_a_reader_who_leaves_is_not_waited_upon(caller: httpx.AsyncClient, app: FastAPI) -> None:
    job = await job_of(caller, "hold")
    watching = app.state.gateway.jobs._watch._waiting
    for kind in ("predictions", "events"):
        async with caller.stream("GET", job["urls"][kind]):
            await happened(lambda: job["id"] in watching)
        await happened(lambda: job["id"] not in watching)


async def test_a_slow_reader_holds_up_the_stream_and_not_the_memory(
    caller: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def endless(_job_id: str) -> Any:
        nonlocal sent
        while True:
            sent += 1
            await asyncio.sleep(0)  # as a store does
            yield b'{"prediction":"' + b"x" * 100_000 + b'"}\n'

    job = await job_of(caller, "x", prefer="wait=5")
    monkeypatch.setattr(app.state.gateway.jobs, "outcomes", endless)
    async with caller.stream("GET", job["urls"]["predictions"]) as answer:
        await asyncio.sleep(0.3)
        before = sent
        await asyncio.sleep(0.2)
        assert sent == before < 200  # what the sockets take
        async for _ in answer.aiter_bytes(1_000_000):
            if sent > before:
                break


async def test_a_stream_whose_source_fails_is_cut_not_ended(
    caller: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(_job_id: str) -> Any:
        yield b'{"prediction":1}\n'
        raise RuntimeError("a secret")

    job = await job_of(caller, "x", prefer="wait=5")
    monkeypatch.setattr(app.state.gateway.jobs, "outcomes", failing)

    with pytest.raises(httpx.RemoteProtocolError):
        await caller.get(job["urls"]["predictions"])


async def test_events_tell_the_life_of_a_job(caller: httpx.AsyncClient, server: PickyServer) -> None:
    job = await job_of(caller, *["hold"] * 2)
    asyncio.get_running_loop().call_later(0.1, server.gate.set)

    answer = await caller.get(job["urls"]["events"])

    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    retry, *events = [each for each in answer.text.split("\n\n") if each and not each.startswith(":")]
    told = [dict(line.split(": ", 1) for line in event.splitlines()) for event in events]
    assert retry == "retry: 2000"
    assert told[0]["event"] in {"queued", "running"}
    assert [each["event"] for each in told[-2:]] == ["progress", "succeeded"]
    assert [each["id"] for each in told] == sorted({each["id"] for each in told})
    assert json.loads(told[-1]["data"]) == (await caller.get(job["urls"]["self"])).json()


async def test_events_go_on_after_the_last_that_was_read(caller: httpx.AsyncClient) -> None:
    url = (await job_of(caller, "x", prefer="wait=5"))["urls"]["events"]
    ids = ids_in((await caller.get(url)).text)

    rest = await caller.get(url, headers={"last-event-id": ids[-2]})
    nothing = await caller.get(url, headers={"last-event-id": ids[-1]})
    everything = await caller.get(url, headers={"last-event-id": "nonsense"})

    assert ids_in(rest.text) == ids[-1:]
    assert (nothing.status_code, nothing.text) == (204, "")
    assert everything.text == (await caller.get(url)).text


async def test_events_of_a_second_life_go_on_after_the_last_that_was_read(
    caller: httpx.AsyncClient,
) -> None:
    job = await job_of(caller, "whole", prefer="wait=5")
    urls = job["urls"]
    first = ids_in((await caller.get(urls["events"])).text)
    await caller.post(f"{urls['self']}/replay")
    await caller.get(urls["self"], headers=WAIT)

    second = ids_in((await caller.get(urls["events"], headers={"last-event-id": first[-1]})).text)
    rest = await caller.get(urls["events"], headers={"last-event-id": second[-2]})

    assert job["status"] == "failed"
    assert not set(first) & set(second)
    assert ids_in(rest.text) == second[-1:]


async def test_who_knows_all_events_of_a_job_that_goes_on_waits_for_more(
    caller: httpx.AsyncClient, server: PickyServer
) -> None:
    url = (await job_of(caller, "hold"))["urls"]["events"]
    await happened(lambda: server.asked)

    async with caller.stream("GET", url, headers={"last-event-id": "0-2"}) as answer:
        server.gate.set()
        events = "\n".join([line async for line in answer.aiter_lines()])

    assert answer.status_code == 200
    assert ids_in(events) in (["0-3", "0-4"], ["0-4"])


async def test_events_of_a_job_that_is_forgotten_meanwhile_end(
    caller: httpx.AsyncClient, app: FastAPI
) -> None:
    job = await job_of(caller, "hold")

    async with caller.stream("GET", job["urls"]["events"]) as answer, asyncio.timeout(5):
        lines = answer.aiter_lines()
        assert await anext(lines) == "retry: 2000"
        await app.state.gateway.jobs._records.store.delete([job["id"]])
        async for _ in lines:
            pass

    assert (await caller.get(job["urls"]["events"])).status_code == 404


@pytest.mark.parametrize("kind", ["predictions", "events"])
async def test_nobody_on_the_way_gathers_or_keeps_a_stream(caller: httpx.AsyncClient, kind: str) -> None:
    job = await job_of(caller, "x", prefer="wait=5")

    for method in ("GET", "HEAD"):
        answer = await caller.request(method, job["urls"][kind])
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")


async def test_events_that_do_not_come_leave_a_sign_of_life(
    caller: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("application.job_watch.LOOK_AGAIN", 0.05)
    job = await job_of(caller, "hold")

    async with caller.stream("GET", job["urls"]["events"]) as answer, asyncio.timeout(5):
        async for line in answer.aiter_lines():
            if line == ":":
                break


@pytest.mark.parametrize("kind", ["predictions", "events"])
async def test_head_does_not_wait_for_a_stream(caller: httpx.AsyncClient, kind: str) -> None:
    job = await job_of(caller, "hold")

    async with asyncio.timeout(2):
        answer = await caller.head(job["urls"][kind])

    assert (answer.status_code, answer.content) == (200, b"")
    assert (await caller.get("/health/live")).status_code == 200


async def test_a_job_that_is_canceled_ends_its_streams(caller: httpx.AsyncClient) -> None:
    job = await job_of(caller, "hold", "hold")
    predictions = asyncio.create_task(caller.get(job["urls"]["predictions"]))
    events = asyncio.create_task(caller.get(job["urls"]["events"]))
    await asyncio.sleep(0.05)

    await caller.delete(job["urls"]["cancel"])

    lines = (await predictions).text.splitlines()
    assert [json.loads(line)["error"]["type"] for line in lines] == ["/problems/job-conflict"] * 2
    assert "event: canceled\n" in (await events).text
