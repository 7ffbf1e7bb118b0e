"""What the dispatcher needs of the outside, and the one port that everything inside is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from domain.events import Event

if TYPE_CHECKING:
    from domain.fleet import ServedModel
    from domain.prediction import PredictionRequest, PredictionResult


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


Observer: TypeAlias = Callable[[Event], None]
