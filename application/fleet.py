"""The configured model servers, what each serves now, and which of them can answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from domain.errors import DispatchError, ModelNotFound, NoServerAvailable, ServerError, VersionNotFound
from domain.events import ServerFound, ServerLost
from domain.fleet import ServedModel, ServerState
from domain.prediction import ANY_SERVER, ModelRef, PredictionRequest, ServerAddress
from domain.selection import PeakEwma

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from domain.ports import Observer, Predictor, ServerProbe
    from domain.prediction import Json


@dataclass(slots=True, eq=False)
class Server:
    """One configured model server: how to reach it, what it last said of itself, and its load."""

    name: str
    host: str
    port: int
    predict: Predictor
    probe: ServerProbe
    state: ServerState = field(default_factory=ServerState)
    load: PeakEwma = field(default_factory=PeakEwma)
    answered: set[ModelRef] = field(default_factory=set)  # since it was last asked

    def serves(self, model: ModelRef) -> Iterable[ServedModel]:
        """The versions of `model` this server has, ready or not; only the default where none is asked."""
        for served in self.state.models:
            wanted = served.default if model.version is None else served.version in {None, model.version}
            if served.name == model.name and wanted:
                yield served

    def why_not(self, model: ModelRef) -> str | None:
        """Why this server cannot answer for `model` now, in one clause; None where it can."""
        if self.state.problem is not None:
            return self.state.problem
        served = next(iter(self.serves(model)), None)
        if served is None:
            return f"does not serve {model}"
        if not served.workers_ready:
            return f"has no ready worker for {model} ({served.workers} configured)"
        return self.state.failing.get(ModelRef(served.name, served.version))

    def took(self, model: ModelRef, seconds: float, now: float) -> None:
        """Note an answer for `model` that took `seconds`, at time `now` of the event loop's clock."""
        self.load.observe(seconds, now)
        self.answered.add(model)


class Fleet:
    """Asks every server what it serves, and answers from what they said last.

    `canaries` maps a model's name to an instance it must be able to answer, within `canary_timeout`
    seconds, before a server counts as ready for it: TorchServe calls a wedged worker READY.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        observe: Observer,
        canaries: Mapping[str, Json],
        canary_timeout: float,
    ) -> None:
        self.servers = tuple(servers)
        self._observe = observe
        self._canaries = canaries
        self._canary_timeout = canary_timeout
        self._refreshing: asyncio.Task[None] | None = None
        self._refreshed_at = float("-inf")
        self._wake = asyncio.Event()

    # --- asking the servers

    async def refresh(self, *, max_age: float = 0.0) -> None:
        """Ask all servers now, unless they were asked within `max_age` seconds.

        Whoever comes while they are being asked waits for that answer: it is asked once for all.
        """
        now = asyncio.get_running_loop().time()
        if self._refreshing is None:
            if now - self._refreshed_at < max_age:
                return
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.shield(self._refreshing)

    async def watch(self, interval: float, interval_down: float) -> None:
        """Refresh for ever: every `interval` seconds, `interval_down` while a server has a problem."""
        while True:
            await self.refresh()
            trouble = any(s.state.problem or s.state.failing for s in self.servers)
            self._wake.clear()
            try:
                async with asyncio.timeout(interval_down if trouble else interval):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def lost(self, server: Server, reason: str) -> None:
        """Take `server` out until it is asked again: somebody just failed to reach it."""
        self._enter(server, ServerState(server.state.models, reason))
        self._wake.set()

    async def _refresh(self) -> None:
        try:
            await asyncio.gather(*(self._ask(server) for server in self.servers))
            self._refreshed_at = asyncio.get_running_loop().time()
        finally:
            self._refreshing = None

    async def _ask(self, server: Server) -> None:
        try:
            models = await server.probe()
        except ServerError as error:
            self._enter(server, ServerState(server.state.models, str(error)))
            return
        failing = await asyncio.gather(*(self._canary(server, served) for served in models))
        server.answered.clear()
        self._enter(server, ServerState(models, None, dict(f for f in failing if f is not None)))

    async def _canary(self, server: Server, served: ServedModel) -> tuple[ModelRef, str] | None:
        model = ModelRef(served.name, served.version)
        if served.name not in self._canaries or not served.workers_ready or model in server.answered:
            return None  # real answers are proof enough, and a busy server is spared the question
        instance = self._canaries[served.name]
        try:
            async with asyncio.timeout(self._canary_timeout):
                await server.predict(PredictionRequest(model, (instance,)))
        except TimeoutError:
            return model, f"answered no canary prediction for {model} within {self._canary_timeout:g} s"
        except DispatchError as error:
            return model, f"failed the canary prediction for {model}: {error}"
        return None

    def _enter(self, server: Server, state: ServerState) -> None:
        before, server.state = server.state, state
        if state.problem is not None and before.problem is None:
            self._observe(ServerLost(server.name, state.problem))
        if state.problem is None and before.problem is not None:
            self._observe(ServerFound(server.name, tuple(sorted({m.name for m in state.models}))))

    # --- answering from what they said

    def resolve(self, model: ModelRef) -> ModelRef:
        """`model` with the version that stands for it now; the version stays None where no server says.

        Raises ModelNotFound, VersionNotFound, or NoServerAvailable where a server that cannot be asked
        may have it.
        """
        versions = [served.version for server in self._ready_first(model) for served in server.serves(model)]
        if versions:
            return ModelRef(model.name, versions[0] or model.version)
        silent = [server for server in self.servers if server.state.problem is not None]
        if silent:
            reasons = "; ".join(f"{server.name}: {server.state.problem}" for server in silent)
            message = f"It is not known whether {model} is served. {reasons}"
            raise NoServerAvailable(message)
        if any(served.name == model.name for served in self.models()):
            raise VersionNotFound(self._versions_message(model))
        names = ", ".join(sorted({served.name for served in self.models()})) or "none"
        message = f"No server serves a model named {model.name!r}. Served: {names}."
        raise ModelNotFound(message)

    def ready(self, model: ModelRef, address: ServerAddress = ANY_SERVER) -> list[Server]:
        """The servers that can answer for `model` now."""
        return [s for s in self.at(address) if s.why_not(model) is None]

    def why_not(self, model: ModelRef, address: ServerAddress = ANY_SERVER) -> str:
        """Why `ready` is empty, server by server."""
        reasons = "; ".join(f"{s.name}: {s.why_not(model)}" for s in self.at(address))
        return f"No server can answer for {model} now. {reasons}"

    def at(self, address: ServerAddress) -> list[Server]:
        """The configured servers that `address` names."""
        return [s for s in self.servers if address.names(s.host, s.port)]

    def models(self) -> set[ServedModel]:
        """Everything any server said it serves."""
        return {served for server in self.servers for served in server.state.models}

    def _ready_first(self, model: ModelRef) -> list[Server]:
        return sorted(self.servers, key=lambda server: server.why_not(model) is not None)

    def _versions_message(self, model: ModelRef) -> str:
        known = sorted({str(s.version) for s in self.models() if s.name == model.name and s.version})
        return f"Model {model.name!r} has no version {model.version!r}. Served: {', '.join(known)}."
