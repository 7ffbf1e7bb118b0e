"""One run of the benchmarks: how thoroughly, on which cores, with which texts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from benchmarks import machine
from benchmarks.load.closed_loop import closed_loop
from benchmarks.load.rounds import in_turns
from benchmarks.load.texts import Texts, dispatch_body
from benchmarks.process import running
from benchmarks.results import Group
from benchmarks.servers import baseline, gateway, haproxy, nginx
from benchmarks.servers.side import Side

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from benchmarks.process import Program
    from benchmarks.results import Sample, Sides

WARM_UP = 1.0  # seconds, before the rounds that count
MOST = 30_000  # requests a second that texts are prepared for; a side without a memory may hear them again


@dataclass(slots=True)
class Bench:
    """`plain` runs the gateway without the policies that can be left out: what they bring, and cost."""

    rounds: int
    quick: bool
    plain: bool
    folder: Path
    gateway_core: int
    load_core: int
    machine: dict[str, str]
    texts: Texts = field(default_factory=Texts)
    _started: int = 0

    def group(self, name: str, **about: str) -> Group:
        """An empty group that says when and how it was measured."""
        return Group(
            name,
            {
                "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
                "rounds": str(self.rounds),
                **({"quick": "yes"} if self.quick else {}),
                **({"plain": "yes"} if self.plain else {}),
                **about,
            },
            self.machine,
        )

    def seconds(self, full: float, quick: float = 1.0) -> float:
        """How long one round of one side takes."""
        return quick if self.quick else full

    def policies(self, lines: str) -> str:
        """The policies' lines of a model's table."""
        return gateway.NO_POLICY if self.plain else lines

    def place(self, name: str) -> Path:
        """A folder that does not exist yet."""
        self._started += 1
        return self.folder / f"{self._started:02}-{name}"

    def closed(
        self, sides: Sequence[Side], what: str, callers: int, seconds: float, most: int = MOST
    ) -> Sides:
        """All `sides` in turns under closed-loop load with unique texts, pinned: the load on its own core.

        Every side hears the same texts in a round, for which there are `most` a second.
        """

        @lru_cache(maxsize=1)
        def texts(_round: int, length: float) -> list[str]:
            return self.texts.unique(int(most * length))

        def measure(side: Side, number: int) -> Sample:
            length = seconds if number else WARM_UP
            sent = texts(number, length)
            return closed_loop(side, sent, callers=callers, seconds=length, core=self.load_core)

        return in_turns(sides, self.rounds, measure, what)


class Pinned:
    """Sides that forward `/dispatch_model` to a stub: the stub on the load's core, the sides on the other."""

    def __init__(self, bench: Bench, stack: ExitStack) -> None:
        self._bench = bench
        self._stack = stack
        self._gateway = [bench.gateway_core]

    def stub(self, *, counting: bool = False) -> str:
        """A stub, as host and port."""
        place = self._bench.place("stub")
        return self._address(nginx.stub(place, [self._bench.load_core], counting=counting))

    def proxy(
        self, name: str, start: Callable[[Path, Sequence[int], str], tuple[Program, int]], stub: str
    ) -> Side:
        """The side that `start` starts."""
        program, port = start(self._bench.place(name.replace(" ", "-")), self._gateway, stub)
        return self._side(name, self._stack.enter_context(running(program)), port)

    def ours(self, name: str, policies: str, stub: str, tables: str = "") -> Side:
        """The gateway with `policies`, and `tables` of its own."""
        config = gateway.toml(self._bench.policies(policies), url=f"http://{stub}", tables=tables)
        program, port = gateway.start(self._bench.place("gateway"), self._gateway, config)
        return self._side(
            name, self._stack.enter_context(running(program)), port, remembers="caching = true" in policies
        )

    def direct(self, stub: str) -> Side:
        """The stub itself."""
        return Side("direct", f"http://{stub}/predictions/m", dispatch_body("m"))

    def _side(self, name: str, program: Program, port: int, *, remembers: bool = False) -> Side:
        side = Side(
            name, f"http://127.0.0.1:{port}/dispatch_model", dispatch_body("m"), program, remembers=remembers
        )
        side.check()
        return side

    def _address(self, started: tuple[Program, int]) -> str:
        program, port = started
        self._stack.enter_context(running(program))
        return f"127.0.0.1:{port}"


def fastapi_httpx(folder: Path, cores: Sequence[int], upstream: str) -> tuple[Program, int]:
    """benchmarks/baselines/fastapi_httpx.py."""
    return baseline.start("fastapi_httpx", folder, cores, upstream)


def fastapi_requests(folder: Path, cores: Sequence[int], upstream: str) -> tuple[Program, int]:
    """benchmarks/baselines/fastapi_requests.py."""
    return baseline.start("fastapi_requests", folder, cores, upstream)


PROXIES = {
    "nginx": nginx.reverse_proxy,
    "HAProxy": haproxy.reverse_proxy,
    "FastAPI + httpx": fastapi_httpx,
    "FastAPI + requests": fastapi_requests,
}


def open_bench(folder: Path, *, rounds: int, quick: bool, plain: bool) -> Bench:
    """A run that keeps its files in `folder`."""
    gateway_core, load_core = machine.cores()
    return Bench(rounds, quick, plain, folder, gateway_core, load_core, machine.describe())
