"""What an answer from a cache costs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.bench import WARM_UP, Pinned
from benchmarks.load.closed_loop import closed_loop
from benchmarks.load.rounds import in_turns
from benchmarks.process import running
from benchmarks.servers import gateway, nginx, redis
from benchmarks.tables import loaded

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.results import Group, Sample
    from benchmarks.servers.side import Side

NAME = "hits"
LOAD = "32 callers"
MEMORY, REDIS, NGINX = "model-dispatcher, memory", "model-dispatcher, Redis", "nginx proxy_cache"
TEXTS = 1_000

PROSE = f"""\
{TEXTS:,} texts, asked again and again by 32 callers; after the first time all answers come from the cache.
nginx keeps its cache in files, keyed on the body, with their handles held open (`open_file_cache`).
Redis runs on the load's core, so its own processor time is not counted.
"""


def measure(bench: Bench) -> Group:
    """Ours from memory, ours from Redis, nginx from its files."""
    group = bench.group(NAME)
    with ExitStack() as stack:
        pinned = Pinned(bench, stack)
        stub = pinned.stub()
        server, address = redis.start(bench.place("redis"), [bench.load_core])
        stack.enter_context(running(server))
        sides = [
            pinned.proxy(NGINX, nginx.cache, stub),
            pinned.ours(MEMORY, gateway.ALL_SINGLE, stub),
            pinned.ours(REDIS, gateway.ALL_SINGLE, stub, gateway.REDIS.format(url=address)),
        ]
        texts = bench.texts.unique(TEXTS)

        def ask(side: Side, number: int) -> Sample:
            seconds = bench.seconds(4) if number else WARM_UP
            return closed_loop(
                side, texts, callers=32, seconds=seconds, core=bench.load_core, may_repeat=True
            )

        group.loads[LOAD] = in_turns(sides, bench.rounds, ask, "cache hits")
    return group


def render(group: Group) -> str:
    """The section's text."""
    return "\n".join(["## Cache hits", "", PROSE, loaded(group, LOAD, NGINX)])
