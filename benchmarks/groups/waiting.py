"""What callers who wait for their answers hold in the gateway."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.load.callers import Callers, allow_connections, request
from benchmarks.process import BenchmarkError, running
from benchmarks.progress import say
from benchmarks.servers import gateway, nginx, redis
from benchmarks.servers.distributed import Distributed, Services
from benchmarks.servers.side import Side
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.results import Group

NAME = "waiting"
CALLERS = 10_000
MOST_ROUNDS = 3
QUIET = 1.0  # seconds in which no job comes any more
LONGEST = 60.0  # seconds
SPARE = 200  # files that are open besides
MEBIBYTE = 2**20

IDLE, WAITING, PEAK = "idle", "all waiting", "all answered"
ANSWERED, SECONDS = "answered", "seconds from the worker's start to the last answer"

PROSE = f"""\
{CALLERS:,} callers, each with a connection of its own, ask `/api/predict/` for a unique text while no worker
runs; the gateway's resident memory is looked at when all their jobs are there. Then the worker is started,
and every one of them has to get its prediction. Gateway and worker as in docker-compose.yml, the model is
the nginx of *Jobs*, and each round has a new gateway.
"""


def measure(bench: Bench) -> Group:
    """Memory before, while all wait, and after; and who was answered."""
    group = bench.group(NAME)
    allow_connections(CALLERS + SPARE)
    rounds = []
    with ExitStack() as stack:
        services = Services.start(bench, stack)
        program, port = nginx.stub(bench.place("stub"), counting=True)
        stack.enter_context(running(program))
        config = gateway.toml(
            bench.policies(gateway.ALL), url=f"http://127.0.0.1:{port}", tables=services.tables("m")
        )
        for number_of_round in range(1, min(bench.rounds, MOST_ROUNDS) + 1):
            services.forget()
            rounds.append(_round(bench, services, config))
            told = ", ".join(
                f"{name} {value / MEBIBYTE:.1f} MiB" for name, value in rounds[-1].items() if value > 1e6
            )
            say(f"  waiting, round {number_of_round}: {told}, {rounds[-1][ANSWERED]:,.0f} answered")
    group.figures = {name: median(each[name] for each in rounds) for name in rounds[0]}
    group.figures[ANSWERED] = min(each[ANSWERED] for each in rounds)
    return group


def _round(bench: Bench, services: Services, config: str) -> dict[str, float]:
    with ExitStack() as stack:
        ours = Distributed(bench, stack, config)
        url = ours.url("/api/predict/")
        Side("the gateway", url, lambda text: {"text": text}).settle(*bench.texts.unique(1))
        ours.stop_worker()
        found: dict[str, float] = {IDLE: ours.gateway.resident_bytes()}
        asked = [request("POST", url, {"text": text}) for text in bench.texts.unique(CALLERS)]
        callers = Callers(url, asked, CALLERS)
        return asyncio.run(_wait(callers, ours, services, found))


async def _wait(
    callers: Callers, ours: Distributed, services: Services, found: dict[str, float]
) -> dict[str, float]:
    asking = asyncio.create_task(callers.run())
    await _all_there(callers, services)
    found[WAITING] = ours.gateway.resident_bytes()
    begun = time.monotonic()
    ours.start_worker()
    try:
        answers = await asyncio.wait_for(asking, LONGEST)
    except TimeoutError:
        answers = callers.answers
    found[SECONDS] = time.monotonic() - begun
    found[PEAK] = ours.gateway.resident_bytes()
    found[ANSWERED] = sum(answer.status == 200 and b"label" in answer.body for answer in answers)
    return found


async def _all_there(callers: Callers, services: Services) -> None:
    """Wait until all have asked, and no more keys come into the jobs' Redis."""
    give_up, before, since = time.monotonic() + LONGEST, -1, time.monotonic()
    while callers.sent < CALLERS or time.monotonic() - since < QUIET:
        now = redis.keys(services.jobs_url)
        if now != before:
            before, since = now, time.monotonic()
        if time.monotonic() > give_up:
            raise BenchmarkError(f"Only {callers.sent:,} of {CALLERS:,} callers have asked.")
        await asyncio.sleep(0.1)


def render(group: Group) -> str:
    """The section's text."""
    rows = [[name, number(group.figures[name], 1, 1 / MEBIBYTE)] for name in (IDLE, WAITING, PEAK)]
    answered = (
        f"{group.figures[ANSWERED]:,.0f} of {CALLERS:,} got their prediction (the worst round), the last of "
        f"them {group.figures[SECONDS]:.1f} s after the worker's process was started."
    )
    return "\n".join(["## Waiting callers", "", PROSE, table(["", "MiB"], rows), "", answered])
