"""What the dispatcher needs of the outside, and the one port that everything inside is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from domain.events import Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from domain.fleet import ServedModel
    from domain.prediction import Json, PredictionRequest, PredictionResult


class Predictor(Protocol):
    """Answers a request with one prediction for each instance, in order, or raises a DispatchError.

    A server is a Predictor, a policy is a Predictor around a Predictor, the gateway is a Predictor
    (Eriksen, "Your Server as a Function", 2013).
    """

    async def __call__(self, request: PredictionRequest) -> PredictionResult: ...


class ServerProbe(Protocol):
    """Asks one server what it serves."""

    async def __call__(self) -> tuple[ServedModel, ...]:
        """Every version of every model. Raises ServerError where the server does not say."""
        ...


class Cached(NamedTuple):
    """A prediction that a cache remembers; `ttl` is how long it still does, in seconds."""

    prediction: Json
    ttl: float


class PredictionCache(Protocol):
    """Remembers predictions by fingerprint (fingerprint.fingerprints), for a while and within bounds.

    It may forget anything at any time, and never raises: what cannot be read is a miss, what cannot be
    written is not remembered.
    """

    async def get(self, fingerprints: Sequence[bytes]) -> Sequence[Cached | None]:
        """What is remembered for each, in order; None is a miss."""
        ...

    async def put(self, predictions: Mapping[bytes, Json], ttl: float) -> bool:
        """Remember `predictions` for `ttl` seconds; whether all of them were."""
        ...


class Memory(Protocol):
    """A PredictionCache that can say at once what it remembers."""

    def peek(self, fingerprints: Sequence[bytes]) -> Sequence[Cached | None]:
        """As PredictionCache.get."""
        ...


class Leases(Protocol):
    """Who, of several processes, does a piece of work that many want: whoever takes its lease first.

    A lease ends when it is given back, or by itself when its holder has not done so in time.
    Never raises: where the others cannot be asked, everything is granted.
    """

    async def take(self, fingerprints: Sequence[bytes]) -> frozenset[bytes]:
        """Those of `fingerprints` that nobody held; they are the caller's to do now, and to give back."""
        ...

    async def give_back(self, fingerprints: Sequence[bytes]) -> None:
        """End leases that `take` granted, and wake who waits for them."""
        ...

    async def wait(self, fingerprints: Sequence[bytes]) -> None:
        """Return when any of `fingerprints` may be free: given back, ended, or after a short while anyway."""
        ...


Observer: TypeAlias = Callable[[Event], None]
