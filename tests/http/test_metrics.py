from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    import httpx

    from tests.fakes import FakeServer


async def read(client: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(answer.text)
    return {(s.name, s.labels.get("priority", "")): s.value for each in families for s in each.samples}


async def test_the_backlog_is_told_by_priority(client: httpx.AsyncClient, server: FakeServer) -> None:
    server.seconds = 60.0  # which four bulk jobs wait for at a time
    before = await read(client)
    assert before["dispatcher_jobs_up", ""] == 1.0
    assert before["dispatcher_jobs_queued", "bulk"] == 0.0
    assert ("dispatcher_dead_letters", "") not in before  # there are none without RabbitMQ
    assert ("dispatcher_cache_unanswered_total", "") not in before  # nor this without Redis

    body = {"model_name": "m", "instances": ["a"]}
    for _ in range(7):
        answer = await client.post("/jobs", json=body, headers={"priority": "u=6"})
        assert answer.status_code == 202

    after = await read(client)
    async with asyncio.timeout(5):
        while not after["dispatcher_jobs_queued", "bulk"] == after["dispatcher_queue_waiting", "bulk"] == 3.0:
            after = await read(client)
    assert after["dispatcher_jobs_queued", "interactive"] == 0.0
    assert after["dispatcher_jobs_oldest_queued_seconds", "bulk"] > 0.0
    assert after["dispatcher_jobs_oldest_queued_seconds", "interactive"] == 0.0
