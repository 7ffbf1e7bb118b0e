"""The configured model servers, what each serves now, and which of them can answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from domain.errors import (
    DispatchError,
    ModelNotFound,
    NoServerAvailable,
    ServerError,
    ServerTimeout,
    VersionNotFound,
)
from domain.events import ModelFailing, ServerFound, ServerLost
from domain.fleet import NOT_ASKED, ServedModel, ServerState
from domain.prediction import ANY_SERVER, ModelRef, PredictionRequest, ServerAddress

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from application.server import Server
    from domain.ports import Observer
    from domain.prediction import Json

LOGGER = logging.getLogger("dispatcher.fleet")


class Fleet:
    """Asks every server what it serves, and answers from what they said last.

    `canaries` maps a model's name to an instance it must be able to answer, within `canary_timeout`
    seconds, before a server counts as ready for it: TorchServe calls a wedged worker READY.

    A server that does not say in time how it is counts as lost, unless it has answered a request since it
    was last asked: it is busy, and what it said before still holds. It has to answer anew each time.
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
        # What was answered since a server's state last changed; never more than is served.
        self._resolved: dict[tuple[ModelRef, ServerAddress], ModelRef] = {}
        self._ready: dict[tuple[ModelRef, ServerAddress], list[Server]] = {}
        self._workers: dict[ModelRef, int] = {}
        self._refreshed_at = float("-inf")
        self._wake = asyncio.Event()

    # --- asking the servers

    async def refresh(self, *, max_age: float = 0.0, wait: float | None = None) -> None:
        """Ask all servers now, unless all have answered within the last `max_age` seconds.

        Whoever comes while they are being asked waits for that answer: it is asked once for all.
        After `wait` seconds nobody waits any more for a server that is slow to say.
        """
        if asyncio.get_running_loop().time() - self._refreshed_at < max_age:
            return
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
        await asyncio.wait([self._refreshing], timeout=wait)

    async def watch(self, interval: float, interval_down: float) -> None:
        """Refresh for ever: every `interval` seconds, `interval_down` while a server is in trouble.

        A lost server is asked again at once, and then not more often than every `interval_down`.
        """
        try:
            while True:
                await self.refresh()
                self._wake.clear()
                trouble = any(server.in_trouble() for server in self.servers)
                await asyncio.sleep(interval_down)
                if not trouble:
                    await self._sleep_unless_woken(interval - interval_down)
        finally:
            if self._refreshing is not None:
                self._refreshing.cancel()
                await asyncio.wait([self._refreshing])

    def lost(self, server: Server, reason: str) -> None:
        """Take `server` out until it is asked again: somebody just failed to reach it."""
        server.losses += 1
        server.answered.clear()
        self._enter(server, ServerState(server.state.models, reason, server.state.failing))
        self._wake.set()

    def gone(self, server: Server, model: ModelRef) -> None:
        """Take `model` out of what `server` serves: it just said that it has it no more.

        So what it said before is out of date; of one that cannot be asked for versions, only this one is.
        """
        served = set(server.serves(model))
        if model.version is not None and any(each.version is None for each in served):
            server.denied.add(model)
            self._change(server, server.state)
            return
        left = tuple(each for each in server.state.models if each not in served)
        self._change(server, replace(server.state, models=left))
        if any(each.version is not None for each in served):
            self._refreshed_at = float("-inf")
        self._wake.set()

    async def _sleep_unless_woken(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    async def _refresh(self) -> None:
        try:
            await asyncio.gather(*(self._ask(server) for server in self.servers))
            self._refreshed_at = asyncio.get_running_loop().time()
            if any(server.in_trouble() for server in self.servers):
                self._wake.set()
        finally:
            self._refreshing = None

    async def _ask(self, server: Server) -> None:
        losses = server.losses
        server.late = False
        server.denied.clear()
        try:
            state = await self._state(server)
        except ServerError as error:
            server.late = isinstance(error, ServerTimeout) and bool(server.answered)
            server.answered.clear()
            if server.late:
                return
            state = ServerState(server.state.models, str(error))
        except Exception as error:  # a mistake of ours must not end the watch
            LOGGER.exception("could not ask %s", server.name)
            state = ServerState(server.state.models, f"could not be asked ({type(error).__name__})")
        if state.problem is None and losses != server.losses:
            return  # lost while it was asked: it has to say so again
        self._enter(server, state)

    async def _state(self, server: Server) -> ServerState:
        models = await server.probe()
        failing = await asyncio.gather(*(self._canary(server, served) for served in models))
        server.answered.clear()
        return ServerState(models, None, dict(each for each in failing if each is not None))

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
        before = server.state
        self._change(server, state)
        if state.problem is not None and before.problem in {None, NOT_ASKED}:
            self._observe(ServerLost(server.name, state.problem))
        if state.problem is None and before.problem is not None:
            self._observe(ServerFound(server.name, tuple(sorted({m.name for m in state.models}))))
        for model in state.failing.keys() - before.failing.keys():
            self._observe(ModelFailing(server.name, model, state.failing[model]))

    def _change(self, server: Server, state: ServerState) -> None:
        server.state = state
        self._resolved.clear()
        self._ready.clear()
        self._workers.clear()

    # --- answering from what they said

    def resolve(self, model: ModelRef, address: ServerAddress = ANY_SERVER) -> ModelRef:
        """`model` with the version that stands for it now; the version stays None where no server says.

        Raises ModelNotFound, VersionNotFound, or NoServerAvailable where a server that cannot be asked
        may have it.
        """
        known = self._resolved.get((model, address))
        if known is None:
            known = self._resolved[model, address] = self._resolve(model, address)
        return known

    def _resolve(self, model: ModelRef, address: ServerAddress) -> ModelRef:
        servers = sorted(self.at(address), key=lambda server: server.why_not(model) is not None)
        versions = [served.version for server in servers for served in server.serves(model)]
        if versions:
            return ModelRef(model.name, versions[0] or model.version)
        silent = [server for server in servers if server.state.problem is not None]
        if silent:
            reasons = "; ".join(f"{server.name}: {server.state.problem}" for server in silent)
            raise NoServerAvailable(f"It is not known whether {model} is served. {reasons}")
        if any(served.name == model.name for served in self.models()):
            raise VersionNotFound(self._versions_message(model))
        names = ", ".join(sorted({served.name for served in self.models()})) or "none"
        raise ModelNotFound(f"No server serves a model named {model.name!r}. Served: {names}.")

    def ready(self, model: ModelRef, address: ServerAddress = ANY_SERVER) -> list[Server]:
        """The servers that can answer for `model` now."""
        known = self._ready.get((model, address))
        if known is None:
            known = [s for s in self.at(address) if s.why_not(model) is None]
            if known:
                self._ready[model, address] = known
        return known

    def workers(self, model: ModelRef) -> int:
        """How many workers can answer for `model` now, on all servers."""
        known = self._workers.get(model)
        if known is None:
            serving = [served for server in self.ready(model) for served in server.serves(model)]
            known = sum(served.workers_ready for served in serving)
            if known:
                self._workers[model] = known
        return known

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

    def _versions_message(self, model: ModelRef) -> str:
        known = sorted({str(s.version) for s in self.models() if s.name == model.name and s.version})
        served = ", ".join(known) or "not known"
        return f"Model {model.name!r} has no version {model.version!r}. Served: {served}."
