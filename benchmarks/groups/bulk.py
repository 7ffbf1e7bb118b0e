"""A million texts in one job: how fast they go through, and what the gateway holds of them."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from benchmarks.load.callers import download, look, upload
from benchmarks.load.texts import sentences
from benchmarks.process import BenchmarkError, running
from benchmarks.progress import say
from benchmarks.servers import gateway, nginx
from benchmarks.servers.distributed import THREADS, Distributed, Services
from benchmarks.servers.side import Side
from benchmarks.tables import number, table

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    from benchmarks.bench import Bench
    from benchmarks.process import Program
    from benchmarks.results import Group

NAME = "bulk"
DISTRIBUTED, EMBEDDED = "model-dispatcher, distributed", "model-dispatcher, embedded"
TEXTS, QUICK_TEXTS = 1_000_000, 50_000
LONGEST = 400.0  # seconds that a side may work
LOOK_EVERY, SAMPLE_EVERY = 0.5, 0.05  # seconds
MEBIBYTE = 2**20
CACHE_BYTES = 16 * MEBIBYTE
UPLOAD, WORK, RESULTS = "upload", "work", "results"
PHASES = (UPLOAD, WORK, RESULTS)

PROSE = f"""\
{TEXTS:,} short texts as JSON lines in one `POST /jobs`, worked off, and fetched from
`/jobs/…/predictions`. *Distributed* and *embedded* as under *Jobs*, with the same nginx for a model.
Memory is the gateway's resident set over that of the idle gateway, the highest of each phase, looked at every
{SAMPLE_EVERY * 1e3:.0f} ms. The cache of answers is bounded to {CACHE_BYTES / MEBIBYTE:.0f} MiB
(`cache.max_bytes`), which embedded fills. One round; a million is long enough.
"""


def measure(bench: Bench) -> Group:
    """Both sides, one after the other."""
    group = bench.group(NAME)
    group.about["rounds"] = "1"
    group.figures["texts"] = QUICK_TEXTS if bench.quick else TEXTS
    with ExitStack() as stack, tempfile.TemporaryFile() as lines:
        for count in range(int(group.figures["texts"])):
            lines.write(f"{json.dumps(_short(count))}\n".encode())
        services = Services.start(bench, stack)
        program, port = nginx.stub(bench.place("stub"), counting=True)
        stack.enter_context(running(program))
        stub = f"http://127.0.0.1:{port}"
        ours = Distributed(bench, stack, _config(bench, stub, services.tables("m")))
        alone = gateway.JOBS.format(model="m", concurrency=THREADS)
        embedded, port = gateway.start(bench.place("embedded"), (), _config(bench, stub, alone))
        stack.enter_context(running(embedded))
        for name, program, url in (
            (DISTRIBUTED, ours.gateway, ours.url("")),
            (EMBEDDED, embedded, f"http://127.0.0.1:{port}"),
        ):
            lines.seek(0)
            side = Side(name, f"{url}/api/predict/", lambda text: {"text": text}, program)
            side.settle(*bench.texts.unique(1))
            try:
                _measure(group, name, program, url, lines)
            except BenchmarkError as error:
                raise BenchmarkError(f"{name}: {error}\n{program.last_words()}") from None
    return group


def _config(bench: Bench, stub: str, tables: str) -> str:
    small = gateway.CACHE.format(bytes=CACHE_BYTES)
    return gateway.toml(bench.policies(gateway.ALL), url=stub, tables=small + tables)


def _short(count: int) -> str:
    """A sentence; by the number behind it no two are equal."""
    known = sentences()
    return f"{known[count % len(known)]} {count}"


def _measure(group: Group, name: str, program: Program, url: str, lines: IO[bytes]) -> None:
    """Send the job, await its end, fetch what came of it."""
    wanted = group.figures["texts"]
    idle = group.figures[figure(name, "idle")] = program.resident_bytes()
    found: dict[str, float] = {}

    @contextmanager
    def phase(what: str) -> Iterator[None]:
        begun = time.monotonic()
        with _highest(program) as seen:
            yield
        group.figures[figure(name, what)] = max(seen) - idle
        found[what] = time.monotonic() - begun

    with phase(UPLOAD):
        job = upload(f"{url}/jobs?model_name=m", lines)
    with phase(WORK):
        told = _await_end(f"{url}/jobs/{job['id']}")
    with phase(RESULTS):
        count = _labels(f"{url}/jobs/{job['id']}/predictions")
    if (told["progress"]["done"], count) != (wanted, wanted):
        raise BenchmarkError(f"{told['progress']} and {count:,} predictions of {wanted:,.0f} texts")
    for what in PHASES:
        group.figures[figure(name, f"{what}/s")] = wanted / found[what]
        more = group.figures[figure(name, what)] / MEBIBYTE
        say(f"  {name}, {what}: {wanted / found[what]:,.0f} texts/s, {more:+.1f} MiB")


def _await_end(url: str) -> dict[str, Any]:
    give_up = time.monotonic() + LONGEST
    while True:
        job = look(url)
        if job["completed_at"] is not None:
            return job
        if time.monotonic() > give_up:
            raise BenchmarkError(f"The job is not over after {LONGEST:g} s: {job['progress']}")
        time.sleep(LOOK_EVERY)


def _labels(url: str) -> int:
    """How many lines there have a prediction."""
    count, rest = 0, b""
    for piece in download(url):
        *whole, rest = (rest + piece).split(b"\n")
        count += sum(b'"prediction"' in line for line in whole)
    return count


@contextmanager
def _highest(program: Program) -> Iterator[list[int]]:
    """Its resident bytes, looked at now and again until the block is left."""
    seen = [program.resident_bytes()]
    over = threading.Event()

    def look_again() -> None:
        while not over.wait(SAMPLE_EVERY):
            seen.append(program.resident_bytes())

    looking = threading.Thread(target=look_again, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def figure(side: str, what: str) -> str:
    """The name of a figure."""
    return f"{side}: {what}"


def most(group: Group) -> float | None:
    """The most that a gateway held over idle, in MiB, on whichever side and in whichever phase."""
    held = [group.figures.get(figure(side, what)) for side in (DISTRIBUTED, EMBEDDED) for what in PHASES]
    known = [each for each in held if each is not None]
    return max(known) / MEBIBYTE if known else None


def render(group: Group) -> str:
    """The section's text."""
    rows = []
    for side in (DISTRIBUTED, EMBEDDED):
        rates = [number(group.figures.get(figure(side, f"{what}/s")), 0) for what in PHASES]
        memory = [
            number(group.figures.get(figure(side, what)), 1, 1 / MEBIBYTE) for what in ("idle", *PHASES)
        ]
        rows.append([side, *rates, *memory])
    header = [
        "",
        *(f"{what}, texts/s" for what in PHASES),
        "idle MiB",
        *(f"{what}, + MiB" for what in PHASES),
    ]
    sent = f"{group.figures['texts']:,.0f} texts were sent."
    return "\n".join(["## A million texts", "", PROSE, sent, "", table(header, rows)])
