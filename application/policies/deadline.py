"""Total timeout."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from application.cutoff import Cutoffs
from domain.errors import DeadlineExceeded

if TYPE_CHECKING:
    from domain.ports import Predictor
    from domain.prediction import PredictionRequest, PredictionResult


class Deadline:
    """Ends a request when its time is over.

    A request without a deadline gets `default` seconds; none gets more than `cap` seconds from here.
    Everything inside may read `request.deadline` and is cancelled at that moment.
    Raises DeadlineExceeded.
    """

    def __init__(self, inner: Predictor, *, default: float, cap: float) -> None:
        self._inner = inner
        self._default = min(default, cap)
        self._cap = cap
        self._cutoffs = Cutoffs()

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        loop = asyncio.get_running_loop()
        now = loop.time()
        deadline = request.deadline
        if deadline is None:
            deadline = now + self._default
        elif deadline <= now:
            raise DeadlineExceeded
        elif deadline > now + self._cap:
            deadline = now + self._cap
        cutoff = self._cutoffs.at(deadline, loop)
        try:
            with cutoff:
                return await self._inner(request.until(deadline))
        except TimeoutError:
            if not cutoff.passed:
                raise
            message = f"No answer within {deadline - now:.3g} s. Allow more time, or send fewer instances."
            raise DeadlineExceeded(message) from None
