"""What a request costs that is only forwarded: ours, the proxies, and the gateways people write."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from benchmarks.bench import PROXIES, Pinned
from benchmarks.servers import gateway
from benchmarks.tables import loaded

if TYPE_CHECKING:
    from benchmarks.bench import Bench
    from benchmarks.results import Group

NAME = "overhead"
MANY, ONE = "32 callers", "1 caller"
OURS, NGINX, DIRECT = "model-dispatcher, every policy", "nginx", "direct"

PROSE = """\
An nginx that answers like TorchServe with a prediction at once stands for the model; it shares a core with
the load (wrk). The gateway under test has the other core to itself. All hear the same unique texts in JSON,
so nothing is answered from a cache. `direct` is the stub without anything in front of it.

*Every policy* is caching (always a miss, always stored), coalescing, admission, batching with batches of one,
balancing and the timeouts; the stub claims 64 workers, so that nobody waits for one. *With batches* lets
batches grow in front of one worker; its stub counts instances, in nginx's JavaScript on the load's core.
FastAPI + httpx and FastAPI + requests are in benchmarks/baselines/: one route, a pydantic model, one shared
client, as one writes them in an afternoon, under one uvicorn process with uvloop and httptools.
"""


def measure(bench: Bench) -> Group:
    """All sides, at 32 callers and at one."""
    group = bench.group(NAME)
    with ExitStack() as stack:
        pinned = Pinned(bench, stack)
        stub = pinned.stub()
        proxies = [pinned.proxy(name, start, stub) for name, start in PROXIES.items()]
        ours = pinned.ours(OURS, gateway.ALL_SINGLE, stub)
        batching = pinned.ours(f"{OURS}, with batches", gateway.ALL, pinned.stub(counting=True))
        sides = [pinned.direct(stub), ours, *proxies, batching]
        group.loads[MANY] = bench.closed(sides, MANY, 32, bench.seconds(3))
        group.loads[ONE] = bench.closed(sides[:-1], ONE, 1, bench.seconds(2))
    return group


def added(group: Group, side: str) -> float | None:
    """Seconds that `side` adds to the median latency of one caller."""
    with_it, without = (group.median(ONE, each, "p50") for each in (side, DIRECT))
    return with_it - without if with_it is not None and without is not None else None


def render(group: Group) -> str:
    """The section's text."""
    many, one = (loaded(group, load, NGINX) for load in (MANY, ONE))
    return f"## Overhead\n\n{PROSE}\n32 callers:\n\n{many}\n\n1 caller:\n\n{one}"
