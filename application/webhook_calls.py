"""Calling the webhooks of jobs that are over: at least once, and no server holds up the calls of another."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from domain.errors import Unavailable
from domain.ports import Change
from domain.webhook import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable

    from application.job_records import JobRecords
    from domain.job import Job
    from domain.ports import WebhookSender

LOGGER = logging.getLogger("dispatcher.jobs")

CLAIM = 60.0  # seconds that whoever claims a call has for all of it
REACH = 30.0  # seconds of them in which the call must begin; it has the rest, and so has its record
AT_ONCE = 64  # calls under way
PER_HOST = 8  # of them to one host: a dead one takes no more
WAITING = 5_000  # calls that are claimed, or under way
LONGEST_POSTPONED = 300.0  # seconds that others are left alone, at most
RECORD_AGAIN = 1.0  # seconds between two attempts to record a call
GRACE = 5.0  # seconds to end what is under way when all is closed
FIRST_GUESS, WEIGHT = 0.1, 0.2  # seconds that a call takes, and how much the latest says about the next


@dataclass(eq=False)
class _Host:
    """One server: `ahead` calls wait or are under way, and one took `seconds` of late (moving average)."""

    name: str
    ahead: int = 0
    seconds: float = FIRST_GUESS
    free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PER_HOST))

    def turn(self) -> float:
        """In how many seconds one more would begin."""
        return max(0, self.ahead + 1 - PER_HOST) * self.seconds / PER_HOST

    def took(self, seconds: float) -> None:
        self.seconds += (seconds - self.seconds) * WEIGHT


class WebhookCalls:
    """Claims calls in the records of jobs, makes them, and records what came of them.

    A call is claimed by compare and set, for CLAIM seconds: of several processes one makes it, and should
    that one die, another does. One that would not begin in time is postponed instead, which is a write, too:
    so whatever is due is not due any more, and never stands before what comes after it.
    `clock` tells Unix time; `chance`, in [0, 1), spreads what would come at once.
    """

    def __init__(
        self,
        records: JobRecords,
        send: WebhookSender,
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self._records = records
        self._send = send
        self._clock = clock
        self._chance = chance
        self._free = asyncio.Semaphore(AT_ONCE)
        self._ahead = 0  # of all hosts
        self._hosts: dict[str, _Host] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: set[asyncio.Task[None]] = set()

    async def begin(self, job: Job) -> bool:
        """Claim the call that is due for `job`, and make it, without waiting for it; or postpone it.

        Whether that was done; if not, it is somebody else's. Raises QueueUnavailable, Overloaded.
        """
        assert job.webhook is not None  # it is due
        name = job.webhook.host
        host = self._hosts.get(name) or _Host(name)
        if self._ahead >= WAITING or host.turn() > REACH:
            return await self._claim(job, REACH + self._chance() * (LONGEST_POSTPONED - REACH)) is not None
        self._come(host)
        began = asyncio.get_running_loop().time()
        claimed = None
        try:
            claimed = await self._claim(job, CLAIM)
        finally:
            if claimed is None:
                self._leave(host)
        if claimed is None:
            return False
        task = asyncio.create_task(self._in_turn(claimed, host, began))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def aclose(self) -> None:
        """Begin no more; what is under way has GRACE seconds. What is left undone is made after its claim."""
        for task in self._tasks - self._under_way:
            task.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=GRACE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _claim(self, job: Job, seconds: float) -> Job | None:
        delivery, until = job.webhook, self._clock() + seconds

        def claim(now_job: Job) -> Change | None:
            if delivery is None or now_job.webhook != delivery or not now_job.over:
                return None
            return Change(now_job.notified(delivery.claimed(until), self._clock()))

        return await self._records.change(job, claim)

    async def _in_turn(self, job: Job, host: _Host, began: float) -> None:
        task = asyncio.current_task()
        assert task is not None  # this is one
        loop = asyncio.get_running_loop()
        try:
            async with host.free, self._free:
                if loop.time() - began > REACH:
                    return  # the claim may end before the call does
                self._under_way.add(task)
                called = loop.time()
                attempt = await self._attempt(job)
                host.took(loop.time() - called)
                await self._record(job, attempt, began + CLAIM)
        finally:
            self._under_way.discard(task)
            self._leave(host)

    async def _attempt(self, job: Job) -> Attempt:
        assert job.webhook is not None  # it was claimed
        now = self._clock()
        try:
            async with asyncio.timeout(CLAIM - REACH):
                return await self._send(job.webhook.url, message_id(job), message(job), now)
        except TimeoutError:
            return Attempt(now, problem="The server did not answer in time.")
        except Exception:  # a mistake of ours is an attempt that failed, and is planned again
            LOGGER.exception("the webhook of job %s could not be called", job.id)
            return Attempt(now, problem="The call failed.")

    async def _record(self, claimed: Job, attempt: Attempt, until: float) -> None:
        """Record `attempt`; what the plan is now is changed only by who has the claim still."""

        def attempted(job: Job) -> Change | None:
            delivery = job.webhook
            if claimed.webhook is None or delivery is None or attempt in delivery.attempts:
                return None
            if delivery.next_at == claimed.webhook.next_at and job.replays == claimed.replays:
                return Change(job.notified(delivery.attempted(attempt, self._chance()), self._clock()))
            return Change(job.notified(delivery.noted(attempt), self._clock()))

        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._records.change(claimed, attempted)
            except Unavailable:
                if loop.time() + RECORD_AGAIN > until:
                    LOGGER.warning("job %s: its webhook is called again: no record of the call", claimed.id)
                    return
                await asyncio.sleep(RECORD_AGAIN)
            else:
                return

    def _come(self, host: _Host) -> None:
        self._hosts[host.name] = host
        host.ahead += 1
        self._ahead += 1

    def _leave(self, host: _Host) -> None:
        host.ahead -= 1
        self._ahead -= 1
        if not host.ahead:
            del self._hosts[host.name]


def message_id(job: Job) -> str:
    """The name of the event that `job` is over: the same for all calls about it, another once it is replayed.

    No full stop may be in it (Standard Webhooks 1.0).
    """
    return f"{job.id}:{job.replays}"


def message(job: Job) -> bytes:
    """What a webhook is told: an event of Standard Webhooks, thin; the results are fetched."""
    assert job.completed_at is not None  # it is over
    data = {
        "id": job.id,
        "status": job.status,
        "model_name": job.model.name,
        "progress": {"done": job.done, "failed": job.failed, "total": job.total},
    }
    ended = datetime.fromtimestamp(job.completed_at, UTC).isoformat().replace("+00:00", "Z")
    return json.dumps({"type": f"job.{job.status}", "timestamp": ended, "data": data}).encode()
