"""Load balancing: power of two choices on peak EWMA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from domain.errors import ModelNotFound, NoServerAvailable, ServerError, ServerUnreachable, VersionNotFound
from domain.events import AttemptFailed
from domain.prediction import PredictionResult
from domain.selection import power_of_two_choices

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from application.fleet import Fleet
    from application.pipeline import Policy
    from application.server import Server
    from domain.ports import Observer
    from domain.prediction import PredictionRequest

FAILED = 5.0  # seconds that a failure counts as: a server that fails at once must not look fast


class Balancing:
    """Sends each request to one of the fleet's servers that can answer it now.

    Innermost: what it wraps is not one predictor but each server's own, inside the `attempt` policies,
    which see one try on one server. `pick` draws k of a sequence, as `random.Random.sample`;
    `clock` is steady and fine, in seconds (uvloop's own counts milliseconds).
    Raises NoServerAvailable, and what the server raises.
    """

    def __init__(
        self,
        fleet: Fleet,
        *,
        attempt: Policy,
        observe: Observer,
        clock: Callable[[], float],
        pick: Callable[[Sequence[Server], int], list[Server]],
    ) -> None:
        self._fleet = fleet
        self._attempts = {server.name: attempt(server.predict) for server in fleet.servers}
        self._observe = observe
        self._clock = clock
        self._pick = pick

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        ready = self._fleet.ready(request.model, request.server)
        if not ready:
            raise NoServerAvailable(self._fleet.why_not(request.model, request.server))
        begun = self._clock()
        server = ready[0] if len(ready) == 1 else self._choose(ready, begun)
        least = 0.0
        server.load.in_flight += 1
        try:
            result = await self._attempts[server.name](request)
        except (ModelNotFound, VersionNotFound):
            self._fleet.gone(server, request.model)  # removed since it was asked what it serves
            if not self._fleet.ready(request.model, request.server):
                raise
            result = None
        except ServerError as error:
            least = FAILED
            self._observe(AttemptFailed(server.name, request.model, str(error)))
            if isinstance(error, ServerUnreachable):
                self._fleet.lost(server, str(error))
            raise
        finally:
            now = self._clock()
            server.load.in_flight -= 1
            server.load.observe(max(now - begun, least), now)
        if result is None:
            return await self(request)
        server.answered.add(request.model)
        return PredictionResult(result.model, result.predictions, now - begun)

    def _choose(self, ready: Sequence[Server], now: float) -> Server:
        return power_of_two_choices(ready, lambda each: each.load.load(now), self._pick)
