"""How fast a worker gets through jobs that have piled up, with the real sentiment model."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from benchmarks.bench import WARM_UP
from benchmarks.load.callers import Callers, look, request, upload
from benchmarks.load.closed_loop import closed_loop
from benchmarks.load.rounds import in_turns
from benchmarks.load.texts import dispatch_body
from benchmarks.process import BenchmarkError, running
from benchmarks.results import Sample
from benchmarks.servers import gateway
from benchmarks.servers.distributed import Distributed, Services
from benchmarks.servers.side import Side
from benchmarks.servers.torchserve import RunningTorchServe
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench
    from benchmarks.results import Group

NAME = "backlog"
MODEL = "sentiment"
LOAD = "backlog"
DISPATCH = "POST /dispatch_model, 64 callers"
JOBS, BULK = "jobs of one text", "one job of as many"
CALLERS = 64
TEXTS, QUICK_TEXTS, WARM_UP_TEXTS = 600, 200, 50
MOST = 5_000  # requests a second that texts are prepared for
LOOK_EVERY = 0.1  # seconds
LONGEST = 120.0  # seconds

PROSE = f"""\
The sentiment model behind a TorchServe with one worker, unique texts, gateway and worker as in
docker-compose.yml, nothing pinned. *Jobs of one text*: {TEXTS} interactive jobs are accepted while no worker
runs; then one is started, and the time counts from the first job's start to the last one's end, as the jobs
themselves tell. *One job of as many*: the same number as JSON lines, of low priority. *POST /dispatch_model*
is the same gateway, which asks the model itself, under {CALLERS} callers in a closed loop. All in turns.
"""


def measure(bench: Bench) -> Group:
    """The gateway itself, jobs of one, and one job of many, in turns."""
    group = bench.group(NAME)
    torchserve = RunningTorchServe.start(bench.place("torchserve"))
    with running(torchserve.program), ExitStack() as stack:
        services = Services.start(bench, stack)
        server = torchserve.server
        config = gateway.toml(
            bench.policies(gateway.OF_MODEL[MODEL]),
            url=server.url,
            management_url=server.management_url,
            key_file=server.key_file,
            model=MODEL,
            tables=services.tables(MODEL),
        )
        ours = Distributed(bench, stack, config)
        side = Side(DISPATCH, ours.url("/dispatch_model"), dispatch_body(MODEL), ours.gateway, remembers=True)
        side.check()

        def ask(side: Side, number: int) -> Sample:
            if side.name == DISPATCH:
                seconds = bench.seconds(4, 3) if number else WARM_UP
                texts = bench.texts.unique(int(MOST * seconds))
                sample = closed_loop(side, texts, callers=CALLERS, seconds=seconds)
                side.settle(*bench.texts.unique(1))
                return sample
            count = (QUICK_TEXTS if bench.quick else TEXTS) if number else WARM_UP_TEXTS
            work_off = _jobs if side.name == JOBS else _bulk
            return work_off(ours, bench.texts.unique(count))

        sides = [side, replace(side, name=JOBS), replace(side, name=BULK)]
        group.loads[LOAD] = in_turns(sides, bench.rounds, ask, LOAD)
    return group


def _jobs(ours: Distributed, texts: Sequence[str]) -> Sample:
    ours.stop_worker()
    body, url = dispatch_body(MODEL), ours.url("/jobs")
    submitted = Callers(url, [request("POST", url, body(text)) for text in texts], CALLERS)
    ids = [job["id"] for job in _told(submitted)]
    ours.start_worker()
    _await_end(ours, ids[-1])
    for (
        job_id
    ) in ids:  # most are over, and looking at those that are not yet costs the last few of them little
        _await_end(ours, job_id)
    told = Callers(url, [request("GET", ours.url(f"/jobs/{job_id}")) for job_id in ids], 1)
    return _sample(_told(told))


def _bulk(ours: Distributed, texts: Sequence[str]) -> Sample:
    with tempfile.TemporaryFile() as lines:
        lines.write("".join(f"{json.dumps(text)}\n" for text in texts).encode())
        lines.seek(0)
        job = upload(ours.url(f"/jobs?model_name={MODEL}"), lines)
    return _sample([_await_end(ours, job["id"])])


def _told(callers: Callers) -> list[dict[str, Any]]:
    answers = asyncio.run(callers.run())
    refused = [answer for answer in answers if answer.status not in {200, 202}]
    if refused:
        raise BenchmarkError(f"{len(refused)} of {len(answers)} were refused: {refused[0].body[:500]!r}")
    return [json.loads(answer.body) for answer in answers]


def _await_end(ours: Distributed, job_id: str) -> dict[str, Any]:
    give_up = time.monotonic() + LONGEST
    while time.monotonic() < give_up:
        job = look(ours.url(f"/jobs/{job_id}"))
        if job["completed_at"] is not None:
            return job
        time.sleep(LOOK_EVERY)
    raise BenchmarkError(f"A job is not over after {LONGEST:g} s.\n{ours.worker.last_words()}")


def _sample(jobs: Sequence[dict[str, Any]]) -> Sample:
    """From the first start to the last end; p50 and p99 are from a job's acceptance to its end."""
    times = [tuple(_time(job[name]) for name in ("created_at", "started_at", "completed_at")) for job in jobs]
    took = sorted(completed - created for created, _, completed in times)
    return Sample(
        requests=sum(job["progress"]["total"] for job in jobs),
        seconds=max(end for *_, end in times) - min(start for _, start, _ in times),
        p50=took[len(took) // 2],
        p99=took[len(took) * 99 // 100],
        failed=sum(job["progress"]["total"] - job["progress"]["done"] for job in jobs),
    )


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def render(group: Group) -> str:
    """The section's text."""
    rows = []
    for side, samples in group.loads.get(LOAD, {}).items():
        failed = sum(sample.failed for sample in samples)
        rates = sorted(sample.rate for sample in samples)
        rate = number(group.median(LOAD, side, "rate"), 1)
        rows.append(
            [
                f"{side} ({failed} failed)" if failed else side,
                f"{rate} ({number(rates[0], 1)}–{number(rates[-1], 1)})",
                number(group.ratio(LOAD, "rate", (side, DISPATCH))),
            ]
        )
    return "\n".join(["## A backlog of jobs", "", PROSE, table(["", "texts/s", f"× {DISPATCH}"], rows)])
