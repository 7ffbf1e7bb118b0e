"""Callers that do not give up: they submit jobs, and see what becomes of them."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

CALLERS = 64  # that submit at the same time
PAUSE = 0.05  # seconds before a caller who was refused comes again
PATIENCE = 120.0  # seconds: whatever was killed is started again in a few, RabbitMQ in up to 60
MODEL = "faulty"
OVER = {"succeeded", "failed", "canceled", "expired"}


def instance(number: int) -> dict[str, Any]:
    """What the job of this number asks; the model answers with the same."""
    return {"do": "echo", "number": number}


@dataclass
class Callers:
    """`accepted` are the ids of jobs, by number: everything a 202 was seen for."""

    url: str
    accepted: dict[int, str] = field(default_factory=dict)
    outcomes: dict[int, str] = field(default_factory=dict)  # as they were when first seen
    changed: set[int] = field(default_factory=set)  # answered twice differently
    refused: Counter[str] = field(default_factory=Counter)  # what callers heard instead of a 202
    twice: int = 0  # worked by more than one
    statuses: Counter[str] = field(default_factory=Counter)
    run: str = field(default_factory=lambda: secrets.token_hex(4))

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=20, limits=httpx.Limits(max_connections=CALLERS))

    async def submit(self, numbers: range) -> None:
        """Submit a job for each of `numbers`, at full speed; those who are refused come again.

        Fails when one of them has been refused for PATIENCE seconds.
        """
        left = iter(numbers)
        async with self.client() as client, asyncio.TaskGroup() as callers:

            async def caller() -> None:
                for number in left:
                    await self._until_accepted(client, number)

            for _ in range(CALLERS):
                callers.create_task(caller())

    async def _until_accepted(self, client: httpx.AsyncClient, number: int) -> None:
        give_up = time.monotonic() + PATIENCE
        while not await self._submit(client, number):
            assert time.monotonic() < give_up, (
                f"job {number} was refused for {PATIENCE:g} s; all refusals: {dict(self.refused)}"
            )
            await asyncio.sleep(PAUSE)

    async def _submit(self, client: httpx.AsyncClient, number: int) -> bool:
        try:
            answer = await client.post(
                "/jobs",
                json={"model_name": MODEL, "instances": [instance(number)]},
                headers={"Idempotency-Key": f"{self.run}-{number}"},
            )
        except httpx.HTTPError as error:
            self.refused[type(error).__name__] += 1
            return False
        if answer.status_code not in {200, 202}:
            self.refused[str(answer.status_code)] += 1
            return False
        job_id = answer.json()["id"]
        if self.accepted.setdefault(number, job_id) != job_id:
            self.changed.add(number)
        return True

    async def look(self, numbers: list[int]) -> list[int]:
        """Read these jobs; those that are not over, or cannot be read now."""
        left = iter(numbers)
        async with self.client() as client:

            async def caller() -> list[int]:
                return [number for number in left if not await self._read(client, number)]

            open_still = await asyncio.gather(*(caller() for _ in range(CALLERS)))
        return [number for some in open_still for number in some]

    async def settle(self, seconds: float) -> list[int]:
        """Wait until all jobs are over; those that are not in time."""
        give_up = time.monotonic() + seconds
        left = [number for number in self.accepted if number not in self.outcomes]
        while left and time.monotonic() < give_up:
            left = await self.look(left)
            await asyncio.sleep(0.5)
        return left

    def wrong(self) -> list[int]:
        """Those that are over, and not with the right answer."""
        return [number for number, seen in self.outcomes.items() if seen != _right(number)]

    async def _read(self, client: httpx.AsyncClient, number: int) -> bool:
        job_id = self.accepted[number]
        try:
            job = await client.get(f"/jobs/{job_id}")
            if job.status_code != httpx.codes.OK or job.json()["status"] not in OVER:
                return False
            outcomes = await client.get(f"/jobs/{job_id}/predictions")
        except httpx.HTTPError:
            return False
        if outcomes.status_code != httpx.codes.OK:
            return False
        seen = f"{job.json()['status']}: {outcomes.text}"
        if number not in self.outcomes:
            self.twice += job.json()["attempts"] > 1
            self.statuses[job.json()["status"]] += 1
        if self.outcomes.setdefault(number, seen) != seen:
            self.changed.add(number)
        return True


def _right(number: int) -> str:
    line = json.dumps({"prediction": instance(number)}, separators=(",", ":"))
    return f"succeeded: {line}\n"
