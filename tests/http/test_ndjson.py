from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import httpx
import pytest

from application.job_service import CHUNK
from domain.errors import RequestRejected
from interface.http import lingering, ndjson
from tests.http.happened import happened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import uvicorn
    from fastapi import FastAPI

    from tests.fakes import FakeServer

LINES = {"content-type": "application/x-ndjson"}
WAIT = {"prefer": "wait=5"}
PATH = "/jobs?model_name=m"


async def body(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def chunked(
    *pieces: bytes, max_line: int = 1_000, max_instances: int = 10_000
) -> list[tuple[int, bytes]]:
    found = ndjson.chunks(body(pieces), max_line=max_line, max_instances=max_instances)
    return [chunk async for chunk in found]


async def test_the_lines_are_the_instances_wherever_the_body_is_cut() -> None:
    text = b'"x"\r\n\n  {"a": 1.50}  \n\t\n[1,2]\n"\xc3\xbc\\n"'

    for size in range(1, len(text) + 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert await chunked(*pieces) == [(4, b'["x",{"a": 1.50},[1,2],"\xc3\xbc\\n"]')]


@pytest.mark.parametrize("total", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 7])
async def test_all_chunks_but_the_last_are_full(total: int) -> None:
    chunks = await chunked(b"".join(b"%d\n" % i for i in range(total)))

    assert [each for _, text in chunks for each in json.loads(text)] == list(range(total))
    assert [size for size, _ in chunks[:-1]] == [CHUNK] * (len(chunks) - 1)
    assert [size for size, _ in chunks] == [len(json.loads(text)) for _, text in chunks]


@pytest.mark.parametrize(
    ("text", "pointer", "detail"),
    [
        (b"1\n{\n", "/2", "Line 2: not JSON: EOF while parsing an object at column 1."),
        (b"1\n\n\n1 2", "/4", "Line 4: not JSON: trailing characters at column 3."),
        (b"1,2\n", "/1", "Line 1: not JSON: trailing characters at column 2."),
        (b"1\n\xff", "/2", "Line 2: not JSON: expected value at column 1."),
        (b'{"a": [1,NaN]}', "/1/a/1", "Line 1: NaN and Infinity are not JSON numbers."),
        (b"1e999", "/1", "Line 1: The number is too large for a 64-bit float."),
        (b"1\n" + b"[" * 400, "/2", "Line 2: The body is nested too deeply."),
        (b"1\n2\n3\n", "/3", "At most 2 instances are allowed in one job."),
        (b"", None, "The body has no instances; put one on each line."),
        (b"\n \r\n", None, "The body has no instances; put one on each line."),
        (b'"' + b"x" * 1_000 + b'"\n', None, "A line is larger than 1000 bytes."),
        (b'1\n"' + b"x" * 1_000 + b'"\n2\n', None, "A line is larger than 1000 bytes."),
    ],
)
async def test_a_bad_line_is_named(text: bytes, pointer: str | None, detail: str) -> None:
    for size in (1, 7, len(text) or 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        with pytest.raises(RequestRejected) as caught:
            await chunked(*pieces, max_instances=2)

        assert str(caught.value) == detail
        assert [each.pointer for each in caught.value.errors] == ([pointer] if pointer else [])


async def test_what_is_held_of_a_body_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ndjson, "MOST_BYTES", 1_000)

    assert len(await chunked(*[b"1\n"] * (5 * CHUNK))) == 5
    with pytest.raises(RequestRejected, match="are 1010 bytes"):
        await chunked(*[b'"12345678"\n'] * 200)


async def test_a_line_without_an_end_is_not_gathered_for_ever() -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield b"x" * 100

    with pytest.raises(RequestRejected):
        async for _ in ndjson.chunks(endless(), max_line=1_000, max_instances=1):
            pass
    assert taken == 11


@pytest.mark.parametrize(
    "media_type",
    [
        "application/x-ndjson",
        "application/jsonl; charset=utf-8",
        "application/ndjson",
        "Application/X-NDJSON",
    ],
)
async def test_lines_are_a_job(client: httpx.AsyncClient, media_type: str) -> None:
    text = b"".join(b"%d\n" % i for i in range(1_200))

    answer = await client.post(PATH, content=text, headers={"content-type": media_type} | WAIT)

    assert answer.json()["progress"] == {"done": 1_200, "failed": 0, "total": 1_200}
    lines = (await client.get(answer.json()["urls"]["predictions"])).text.splitlines()
    assert lines == [f'{{"prediction":"a:m/1.0:{i}"}}' for i in range(1_200)]


@pytest.mark.parametrize(("headers", "bulk"), [({}, True), ({"priority": "u=1"}, False)])
async def test_lines_are_bulk_work_if_their_caller_does_not_say_otherwise(
    client: httpx.AsyncClient, app: FastAPI, headers: dict[str, str], bulk: bool
) -> None:
    job = (await client.post(PATH, content=b"1", headers=LINES | headers)).json()

    assert (await app.state.gateway.jobs.get(job["id"])).bulk is bulk


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 422),
        ("?model_name=", 422),
        ("?model_name=m&timeout=soon", 422),
        ("?model_name=m&timeout=nan", 422),
        ("?model_name=m&timeout=-1", 422),
        ("?model_name=m&colour=red", 422),
        ("?model_name=m&webhook_url=https://hook.example", 422),
        ("?model_name=nope", 404),
        ("?model_name=m&model_version=9", 404),
        ("?model_name=m&model_version=1.0&timeout=5", 202),
    ],
)
async def test_the_query_says_what_the_lines_are_for(
    client: httpx.AsyncClient, query: str, status: int
) -> None:
    answer = await client.post(f"/jobs{query}", content=b"1\n", headers=LINES)

    assert answer.status_code == status
    if status == 422 and "webhook" not in query:
        assert "The query is not valid" in answer.json()["detail"] or "Unknown key" in answer.json()["detail"]


async def test_of_a_body_with_a_bad_line_nothing_is_accepted(
    caller: httpx.AsyncClient, server: FakeServer
) -> None:
    async def lines() -> AsyncIterator[bytes]:
        for i in range(1_000):
            yield b"%d\n" % i
        yield b"{\n"

    answer = await caller.post(PATH, content=lines(), headers=LINES)

    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "#/1001")
    assert (await caller.get("/jobs")).json()["jobs"] == []
    assert server.asked == []


async def test_who_reads_no_answer_before_everything_is_sent_finds_it_then(
    caller: httpx.AsyncClient,
) -> None:
    async def late() -> AsyncIterator[bytes]:
        yield b"{\n"
        for _ in range(5):
            await asyncio.sleep(0.05)
            yield b"1\n" * 100_000

    answer = await caller.post(PATH, content=late(), headers=LINES)

    assert (answer.status_code, "connection" in answer.headers) == (422, False)


async def test_who_never_ends_is_cut_off(
    serving: uvicorn.Server, caller: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving.config.timeout_keep_alive = 0.1  # type: ignore[assignment]
    monkeypatch.setattr(lingering, "LINGER", 0.2)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"1\n" * 100

    async with asyncio.timeout(5):
        try:
            answer = await caller.post(PATH, content=endless(), headers=LINES)
        except httpx.TransportError:
            return
    assert answer.status_code == 422


async def test_who_waits_to_be_asked_for_lines_that_are_refused_is_not_waited_for(
    serving: uvicorn.Server,
) -> None:
    reader, writer = await asyncio.open_connection(*serving.servers[0].sockets[0].getsockname()[:2])
    head = ["POST /jobs HTTP/1.1", "host: gateway", "content-type: application/x-ndjson", "content-length: 2"]
    writer.write("\r\n".join([*head, "expect: 100-continue", "x: y", "", ""]).encode())

    async with asyncio.timeout(5):
        answer = await reader.read()  # until it is closed
    writer.close()

    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"\r\nconnection: close\r\n" in answer


async def test_lines_that_do_not_come_are_not_waited_for(
    caller: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ndjson, "PATIENCE", 0.1)

    async def slow(count: int, rest: float) -> AsyncIterator[bytes]:
        for _ in range(count):
            yield b"1\n"
            await asyncio.sleep(0.03)
        await asyncio.sleep(rest)

    steady = await caller.post(PATH, content=slow(8, 0.0), headers=LINES)
    stuck = await caller.post(PATH, content=slow(1, 1.0), headers=LINES)

    assert (steady.status_code, steady.json()["progress"]["total"]) == (202, 8)
    assert (stuck.status_code, stuck.json()["type"]) == (504, "/problems/deadline-exceeded")
    assert stuck.headers["connection"] == "close"  # the rest may still come


async def test_the_same_lines_with_one_key_are_the_same_job(client: httpx.AsyncClient) -> None:
    headers = LINES | {"idempotency-key": "k"}
    text = b"".join(b"%d\n" % i for i in range(1_100))

    first = await client.post(PATH, content=text, headers=headers | WAIT)
    again = await client.post(PATH, content=text.replace(b"\n", b"\r\n\n"), headers=headers)
    other = await client.post(PATH, content=text.replace(b"7", b"8"), headers=headers)

    assert (first.status_code, again.status_code, other.status_code) == (200, 200, 422)
    assert again.json() == first.json()
    assert "Idempotency-Key" in other.json()["detail"]
    assert len((await client.get("/jobs")).json()["jobs"]) == 1


async def test_a_caller_who_leaves_while_waiting_is_not_waited_upon(
    caller: httpx.AsyncClient, app: FastAPI, server: FakeServer
) -> None:
    server.seconds = 60.0
    watching = app.state.gateway.jobs._watch._waiting
    waiting = asyncio.create_task(caller.post(PATH, content=b"1", headers=LINES | {"prefer": "wait=60"}))
    await happened(lambda: watching)

    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)

    await happened(lambda: not watching)
    (job,) = (await caller.get("/jobs")).json()["jobs"]
    assert job["status"] in {"queued", "running"}


async def test_a_caller_who_leaves_while_sending_has_submitted_nothing(
    caller: httpx.AsyncClient, server: FakeServer
) -> None:
    begun = asyncio.Event()

    async def lines() -> AsyncIterator[bytes]:
        for i in range(600):
            yield b"%d\n" % i
        begun.set()
        await asyncio.sleep(60)

    sending = asyncio.create_task(caller.post(PATH, content=lines(), headers=LINES))
    await begun.wait()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await asyncio.sleep(0.1)

    assert (await caller.get("/jobs")).json()["jobs"] == []
    assert server.asked == []
