"""Per-try timeout."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from application.cutoff import Cutoffs
from domain.errors import ServerTimeout

if TYPE_CHECKING:
    from domain.ports import Predictor
    from domain.prediction import PredictionRequest, PredictionResult


class AttemptTimeout:
    """Gives one server `seconds` to answer, so that one slow server cannot eat the whole deadline.

    Stays below TorchServe's `responseTimeout`, which kills the worker when it is over.
    Raises ServerTimeout. A caller's own, shorter deadline cancels from outside and is not seen here.
    """

    def __init__(self, inner: Predictor, *, seconds: float) -> None:
        self._inner = inner
        self._seconds = seconds
        self._cutoffs = Cutoffs()

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        loop = asyncio.get_running_loop()
        cutoff = self._cutoffs.at(loop.time() + self._seconds, loop)
        try:
            with cutoff:
                return await self._inner(request)
        except TimeoutError:
            if not cutoff.passed:
                raise
            message = f"The model server did not answer within {self._seconds:g} s."
            raise ServerTimeout(message) from None
