"""TorchServe with real models: asked directly at its best own settings, and through us."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.bench import WARM_UP
from benchmarks.load.closed_loop import closed_loop
from benchmarks.load.open_loop import open_loop
from benchmarks.load.rounds import in_turns, line
from benchmarks.load.texts import ZIPF_TEXTS, dispatch_body, repeats
from benchmarks.process import running
from benchmarks.progress import say
from benchmarks.servers import gateway
from benchmarks.servers.side import Side
from benchmarks.servers.torchserve import Batching, RunningTorchServe
from benchmarks.tables import loaded, number, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks.bench import Bench
    from benchmarks.results import Group, Sample

CALLERS = (1, 8, 32, 64, 128)
QUICK_CALLERS = (1, 64)
MOST_CALLERS = 64  # the number of callers that TorchServe's settings are swept for
OURS, DEFAULTS, BEST = "through us", "direct, TorchServe's defaults", "direct, TorchServe's best"
SIZES = (8, 16, 32, 64)
FIRST_DELAY, OTHER_DELAYS = 5, (1, 10, 20)  # ms
QUICK_SIZES = (16, 64)
OPEN_SHARES = (0.4, 0.7)  # of what TorchServe's best does in a closed loop
MOST = {"sentiment": 5_000, "light": 25_000}  # requests a second that texts are prepared for
MOST_POPULAR = 30_000

PROSE = f"""\
## The real thing

One TorchServe with one worker for each model, the same number of torch threads on every side, quiet logs;
load, gateway, TorchServe and workers share all cores.
The gateway asks a model at batch_size 1; *TorchServe's defaults* is that model asked without us.
*TorchServe's best* is what a sweep found best for {MOST_CALLERS} callers in this run:
batch_size {", ".join(map(str, (1, *SIZES)))} with a max_batch_delay of {FIRST_DELAY} ms,
then {", ".join(map(str, OTHER_DELAYS))} ms with the best of them.
The gateway has one configuration for all rows: every policy on.

The *sentiment* model is the repository's own. The *light* model (benchmarks/light/) is naive Bayes in
pure Python, some microseconds a text: what remains is what it costs to ask.
Texts are one to five sentences of model_store/sentiment/everyday*.tsv each, 16 words on average (standard
deviation 8), and a number, by which no two are equal. *Unique* texts
are never sent twice, so every one of them is computed. *Zipf* texts are {ZIPF_TEXTS:,} different ones,
text k asked in proportion to 1/k^1.1; the cache knows none of them before the first of these loads and
fills up from left to right, as it would in service.
In the open loop, requests leave at random times (Poisson) at a fixed rate, answered or not, and latency
counts from when they were due.
"""


def measure(bench: Bench, model: str) -> Group:
    """The sweep; then closed loop, Zipf and open loop."""
    group = bench.group(model)
    torchserve = RunningTorchServe.start(bench.place("torchserve"))
    with running(torchserve.program):
        best = sweep(bench, torchserve, model, group)
        group.about["best"] = str(best)
        direct = torchserve.direct(model, name=DEFAULTS), torchserve.direct(model, best, BEST)
        with through_us(bench, torchserve, model) as ours:
            _closed(bench, group, model, (*direct, ours))
            _zipf(bench, group, model, (direct[1], ours))
            _open(bench, group, model, (direct[1], ours))
    return group


def sweep(bench: Bench, torchserve: RunningTorchServe, model: str, group: Group) -> Batching:
    """TorchServe's settings with the most answers a second for `MOST_CALLERS` callers."""
    found: dict[Batching, float] = {}

    def attempt(batching: Batching) -> None:
        side = torchserve.direct(model, batching)
        for seconds in (WARM_UP, _seconds(bench, model, MOST_CALLERS)):
            sample = _ask(bench, side, model, MOST_CALLERS, seconds)
        torchserve.forget(model, batching)
        found[batching] = group.figures[str(batching)] = sample.rate
        say(f"  {model}, {batching}: {line(sample)}")

    attempt(Batching())
    for size in QUICK_SIZES if bench.quick else SIZES:
        attempt(Batching(size, FIRST_DELAY))
    size = max((batching for batching in found if batching.size > 1), key=found.__getitem__).size
    for delay in () if bench.quick else OTHER_DELAYS:
        attempt(Batching(size, delay))
    return max(found, key=found.__getitem__)


@contextmanager
def through_us(
    bench: Bench, torchserve: RunningTorchServe, model: str, headers: dict[str, str] | None = None
) -> Iterator[Side]:
    """The gateway in front of `torchserve`, every policy on."""
    server = torchserve.server
    config = gateway.toml(
        bench.policies(gateway.OF_MODEL[model]),
        url=server.url,
        management_url=server.management_url,
        key_file=server.key_file,
        model=model,
    )
    program, port = gateway.start(bench.place("gateway"), (), config)
    with running(program):
        url = f"http://127.0.0.1:{port}/dispatch_model"
        side = Side(OURS, url, dispatch_body(model), program, headers or {}, remembers=True)
        side.check()
        yield side


def _closed(bench: Bench, group: Group, model: str, sides: Sequence[Side]) -> None:
    for callers in QUICK_CALLERS if bench.quick else CALLERS:

        def ask(side: Side, number: int, callers: int = callers) -> Sample:
            seconds = _seconds(bench, model, callers) if number else WARM_UP
            return _ask(bench, side, model, callers, seconds)

        what = f"{model}, unique texts, {_callers(callers)}"
        group.loads[closed_load(callers)] = in_turns(sides, bench.rounds, ask, what)


def _zipf(bench: Bench, group: Group, model: str, sides: Sequence[Side]) -> None:
    for callers in QUICK_CALLERS if bench.quick else CALLERS:

        def ask(side: Side, number: int, callers: int = callers) -> Sample:
            of_round = _seconds(bench, model, callers) if callers == MOST_CALLERS else bench.seconds(2)
            seconds = of_round if number else WARM_UP
            texts = bench.texts.zipf(int(MOST_POPULAR * seconds), seed=1_000 * callers + number)
            sample = closed_loop(side, texts, callers=callers, seconds=seconds)
            side.settle(*bench.texts.unique(1))
            if side.name == OURS and number:
                load = zipf_load(callers)
                group.figures[f"{load}: repeats in a round"] = repeats(texts[: max(1, sample.requests)])
            return sample

        chosen = sides if callers == MOST_CALLERS else sides[1:]  # for direct, a text is as good as another
        what = f"{model}, Zipf texts, {_callers(callers)}"
        group.loads[zipf_load(callers)] = in_turns(chosen, bench.rounds, ask, what)


def _open(bench: Bench, group: Group, model: str, sides: Sequence[Side]) -> None:
    capacity = group.median(closed_load(MOST_CALLERS), BEST, "rate") or 0.0
    for share in OPEN_SHARES:

        def ask(side: Side, number: int, rate: float = share * capacity) -> Sample:
            seconds = bench.seconds(3) if number else WARM_UP
            texts = bench.texts.unique(int(rate * seconds * 1.5) + 100)
            sample = open_loop(side, texts, rate=rate, seconds=seconds, seed=number)
            side.settle(*bench.texts.unique(1))
            return sample

        what = f"{model}, open loop, {share * capacity:,.0f}/s"
        group.loads[open_load(share)] = in_turns(sides, bench.rounds, ask, what)


def _ask(bench: Bench, side: Side, model: str, callers: int, seconds: float) -> Sample:
    """One closed loop of unique texts, and its end."""
    texts = bench.texts.unique(int(MOST[model] * seconds))
    sample = closed_loop(side, texts, callers=callers, seconds=seconds)
    side.settle(*bench.texts.unique(1))
    return sample


def _seconds(bench: Bench, model: str, callers: int) -> float:
    """Many callers of a slow model go round in lockstep, half a second at a time: averaging takes longer."""
    return bench.seconds(4, 3) if model == "sentiment" and callers >= MOST_CALLERS // 2 else bench.seconds(2)


def closed_load(callers: int) -> str:
    """The name of the closed-loop load with unique texts."""
    return f"unique, {callers}"


def zipf_load(callers: int) -> str:
    """The name of the closed-loop load with popular texts."""
    return f"Zipf, {callers}"


def open_load(share: float) -> str:
    """The name of the open-loop load."""
    return f"open, {share:.0%}"


def render(group: Group) -> str:
    """The section's text."""
    parts = [f"### The {group.name} model", "", f"TorchServe's best settings here: {group.about['best']}."]
    for title, load in (("Unique", closed_load), ("Zipf", zipf_load)):
        loads = {callers: load(callers) for callers in CALLERS if load(callers) in group.loads}
        parts += [
            "",
            f"{title} texts, closed loop, requests/s (p50 ms, p99 ms):",
            "",
            _closed_table(group, loads),
        ]
    parts += ["", _repeats(group)]
    for share in OPEN_SHARES:
        parts += ["", f"Open loop at {share:.0%} of what TorchServe's best does in the closed loop:", ""]
        parts += [loaded(group, open_load(share)), "", _lateness(group, open_load(share))]
    return "\n".join([*parts, "", "The sweep:", "", _sweep(group)])


def _closed_table(group: Group, loads: dict[int, str]) -> str:
    sides = [
        side for side in (DEFAULTS, BEST, OURS) if any(side in group.loads[load] for load in loads.values())
    ]
    rows = [[side, *(_cell(group, load, side) for load in loads.values())] for side in sides]
    return table(["", *(_callers(callers) for callers in loads)], rows)


def _callers(count: int) -> str:
    return f"{count} caller{'s' if count > 1 else ''}"


def _cell(group: Group, load: str, side: str) -> str:
    rate, p50, p99 = (group.median(load, side, value) for value in ("rate", "p50", "p99"))
    if rate is None:
        return "–"
    failed = sum(sample.failed for sample in group.loads[load][side])
    lost = f", {failed} failed" if failed else ""
    return f"{number(rate, 0)} ({number(p50, 1, 1e3)}, {number(p99, 1, 1e3)}{lost})"


def _repeats(group: Group) -> str:
    shares = [
        f"{callers}: {number(share, 0, 100)} %"
        for callers in CALLERS
        if (share := group.figures.get(f"{zipf_load(callers)}: repeats in a round")) is not None
    ]
    return f"Texts that came before within the same round, by callers: {', '.join(shares)}." if shares else ""


def _lateness(group: Group, load: str) -> str:
    late = [each.late or 0.0 for samples in group.loads.get(load, {}).values() for each in samples]
    return f"Requests left at most {number(max(late, default=0.0), 1, 1e3)} ms late (the worst round's p99)."


def _sweep(group: Group) -> str:
    tried = [name for name in group.figures if "batch_size" in name]
    rows = [[name, number(group.figures[name], 0)] for name in tried]
    return table([f"direct, {MOST_CALLERS} callers, unique texts", "requests/s"], rows)
