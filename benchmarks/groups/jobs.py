"""What it costs to go through a job queue: ours, embedded and distributed, and FastAPI with Celery."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.bench import WARM_UP
from benchmarks.load.closed_loop import closed_loop
from benchmarks.load.rounds import in_turns
from benchmarks.load.texts import dispatch_body
from benchmarks.process import running
from benchmarks.servers import baseline, gateway, nginx
from benchmarks.servers.distributed import THREADS, Distributed, Services
from benchmarks.servers.side import Side
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.bench import Bench
    from benchmarks.process import Program
    from benchmarks.results import Group, Sample

NAME = "jobs"
MANY, ONE, ACCEPTING = "32 waiting callers", "1 waiting caller", "accepting, 32 callers"
DISTRIBUTED, EMBEDDED = "model-dispatcher, distributed", "model-dispatcher, embedded"
CELERY = "FastAPI + Celery"
GATEWAY, WORKER, BROKER, REDIS, CACHE = "gateway", "worker", "RabbitMQ", "Redis (jobs)", "Redis (cache)"
PARTS = (GATEWAY, WORKER, BROKER, REDIS, CACHE)
MOST = 15_000  # requests a second that texts are prepared for
QUEUE = "predict"  # of the baseline
NEVER = 3_600.0  # seconds
PATIENT = (
    "timeout = 120\nattempt_timeout = 120\n"  # with a model that does not answer: nothing is tried again
)

PROSE = f"""\
`POST /api/predict/` with one unique text: accepted durably, queued, worked, answered. *Distributed* is what
docker-compose.yml starts: one gateway, one worker, RabbitMQ (quorum queue, publisher confirms), a Redis for
jobs (append-only file, `always`) and one for answers. *Embedded* is the gateway alone, with jobs in
SQLite. *FastAPI + Celery* (benchmarks/baselines/fastapi_celery.py) is the usual endpoint, `delay()` and then
`get()` in a thread, and as durable: the same RabbitMQ and Redis, quorum queue, confirms, late
acknowledgement, prefetch 1; it has no cache, and no record of a job beyond Celery's result. Workers have
{THREADS} threads on both sides. The model is an nginx that answers at once, as many predictions as there are
instances: ours asks it in batches, Celery's tasks one by one, because that is what they do. Nothing is
pinned; load, gateway, worker, broker, Redis and stub share all cores.
"""

OF_ACCEPTING = """\
Accepting only (`POST /jobs` with one instance, `/submit` with `delay()` alone; 202 when it is durable), 32
callers. Nobody works meanwhile: both workers are stopped, and the embedded gateway, which works its own jobs,
has a model that never answers, so that it begins 512 of them and no more. Queue and Redis are emptied
between the rounds.
"""


def measure(bench: Bench) -> Group:
    """Round trips of many and of one, and accepting; all sides in turns."""
    group = bench.group(NAME)
    with ExitStack() as stack:
        services = Services.start(bench, stack)
        program, port = nginx.stub(bench.place("stub"), counting=True)
        stack.enter_context(running(program))
        stub = f"127.0.0.1:{port}"
        ours = Distributed(bench, stack, _config(bench, stub, services.tables("m")))
        embedded = _embedded(bench, stack, stub)
        told = {"BROKER_URL": services.broker_url, "RESULTS_URL": services.jobs_url, "QUEUE": QUEUE}
        celery, celery_port = baseline.start("fastapi_celery", bench.place("celery"), (), stub, told)
        stack.enter_context(running(celery))
        celery_url = f"http://127.0.0.1:{celery_port}"
        with ExitStack() as workers:
            worker = baseline.start_celery(
                "fastapi_celery", bench.place("celery-worker"), stub, told, threads=THREADS
            )
            workers.enter_context(running(worker))
            workers.callback(ours.stop_worker)
            sides = [
                _waiting(
                    DISTRIBUTED, ours.url(""), _parts(services, ours.gateway, ours.worker, services.cache)
                ),
                _waiting(EMBEDDED, embedded[1], {GATEWAY: embedded[0]}),
                _waiting(CELERY, celery_url, _parts(services, celery, worker)),
            ]
            _round_trips(bench, group, sides)
        submitting = [
            _submitting(DISTRIBUTED, ours.url("/jobs"), _parts(services, ours.gateway)),
            _submitting(EMBEDDED, *_idle(bench, stack)),
            _submitting(CELERY, f"{celery_url}/submit", _parts(services, celery)),
        ]
        _accepting(bench, group, services, submitting)
    return group


def _config(bench: Bench, stub: str, tables: str, more: str = "") -> str:
    return gateway.toml(bench.policies(gateway.ALL) + f"\n{more}", url=f"http://{stub}", tables=tables)


def _embedded(bench: Bench, stack: ExitStack, stub: str, more: str = "") -> tuple[Program, str]:
    tables = gateway.JOBS.format(model="m", concurrency=THREADS)
    program, port = gateway.start(bench.place("embedded"), (), _config(bench, stub, tables, more))
    return stack.enter_context(running(program)), f"http://127.0.0.1:{port}"


def _idle(bench: Bench, stack: ExitStack) -> tuple[str, Mapping[str, Program]]:
    """An embedded gateway whose model never answers."""
    program, port = nginx.stub(bench.place("mute"), counting=True, delay=NEVER)
    stack.enter_context(running(program))
    embedded, url = _embedded(bench, stack, f"127.0.0.1:{port}", PATIENT)
    return f"{url}/jobs", {GATEWAY: embedded}


def _parts(
    services: Services, program: Program, worker: Program | None = None, cache: Program | None = None
) -> Mapping[str, Program]:
    there = {GATEWAY: program, WORKER: worker, BROKER: services.rabbitmq, REDIS: services.redis, CACHE: cache}
    return {name: program for name, program in there.items() if program is not None}


def _waiting(name: str, url: str, parts: Mapping[str, Program]) -> Side:
    side = Side(
        name,
        f"{url}/api/predict/",
        lambda text: {"text": text},
        parts[GATEWAY],
        remembers=name != CELERY,
        parts=parts,
    )
    side.settle("Is the worker there?")
    return side


def _submitting(name: str, url: str, parts: Mapping[str, Program]) -> Side:
    body = (lambda text: {"text": text}) if name == CELERY else dispatch_body("m")
    side = Side(name, url, body, parts[GATEWAY], parts=parts, answers='"id"')
    side.check()
    return side


def _round_trips(bench: Bench, group: Group, sides: list[Side]) -> None:
    for load, callers, full in ((MANY, 32, 3.0), (ONE, 1, 2.0)):

        def ask(side: Side, number: int, callers: int = callers, full: float = full) -> Sample:
            seconds = bench.seconds(full) if number else WARM_UP
            sample = closed_loop(
                side, bench.texts.unique(int(MOST * seconds)), callers=callers, seconds=seconds
            )
            side.settle(*bench.texts.unique(1))
            return sample

        group.loads[load] = in_turns(sides, bench.rounds, ask, load)


def _accepting(bench: Bench, group: Group, services: Services, sides: list[Side]) -> None:
    def ask(side: Side, number: int) -> Sample:
        services.forget(QUEUE)
        seconds = bench.seconds(2) if number else WARM_UP
        return closed_loop(side, bench.texts.unique(int(MOST * seconds)), callers=32, seconds=seconds)

    group.loads[ACCEPTING] = in_turns(sides, bench.rounds, ask, ACCEPTING)


def render(group: Group) -> str:
    """The section's text."""
    parts = ["## Jobs", "", PROSE]
    for load in (MANY, ONE, ACCEPTING):
        title = [OF_ACCEPTING] if load == ACCEPTING else [f"{load[0].upper()}{load[1:]}:", ""]
        parts += [*title, _table(group, load), ""]
    return "\n".join(parts[:-1])


def _table(group: Group, load: str) -> str:
    sides = group.loads.get(load, {})
    there = [part for part in PARTS if any(part in each[0].parts for each in sides.values())]
    rows = []
    for side, samples in sides.items():
        failed = sum(sample.failed for sample in samples)
        lost = f" ({failed:,} of {sum(sample.requests for sample in samples):,} failed)" if failed else ""
        p50, p99 = (number(group.median(load, side, value), 1, 1e3) for value in ("p50", "p99"))
        rate = number(group.median(load, side, "rate"), 0)
        cpu = [number(group.part(load, side, part), 0, 1e6) for part in there]
        whole = number(sum(group.part(load, side, part) or 0.0 for part in there), 0, 1e6)
        rows.append([side + lost, rate, p50, p99, whole, *cpu])
    return table(["", "jobs/s", "p50 ms", "p99 ms", "CPU µs/job", *(f"of it {part}" for part in there)], rows)
