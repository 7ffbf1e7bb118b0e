"""The way of a request through the gateway: find the model, run its pipeline, speak for the model."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NoReturn

from application.recall import Pinned, named
from domain.errors import (
    FieldError,
    InputRejectedByModel,
    InvalidRequest,
    ModelNotFound,
    NoServerAvailable,
    VersionNotFound,
)
from domain.prediction import ANY_SERVER, ModelRef, PredictionRequest, PredictionResult, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from application.fleet import Fleet
    from application.pipeline import Pipeline

UNKNOWN = (ModelNotFound, VersionNotFound, NoServerAvailable)
PATIENCE = 0.5  # seconds that a caller waits for servers to say what they serve
LOOK_AGAIN = 1.0  # seconds: how old the fleet's word may be before an unknown model is believed unknown
UNVERIFIED = 64  # pipelines of versions that no server says it has: callers name what they like


class PredictionService:
    """Answers requests for any model the fleet serves.

    `pipeline` makes that of one version of one model: batches and flights never cross models.
    """

    def __init__(self, fleet: Fleet, pipeline: Callable[[ModelRef], Pipeline]) -> None:
        self._fleet = fleet
        self._make_pipeline = pipeline
        self._pipelines: dict[ModelRef, Pipeline] = {}

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        """One prediction for each instance, in order, by the version named in the result.

        Raises a DispatchError; InputRejectedByModel points at every instance the model refused.
        """
        result = await self.predict_each(request)
        if Refusal in map(type, result.predictions):
            self._refuse(result)
        return result

    async def predict_each(self, request: PredictionRequest) -> PredictionResult:
        """The same, with a Refusal in the place of each instance that the model refused.

        Who names no version hears of none that is gone: another stands for it then, and is asked, once,
        within the same deadline; where the request has none, the model's own timeout begins anew.
        """
        if request.server is not ANY_SERVER:
            self._check_address(request)
        try:
            known = isinstance(request, Pinned)
            model = request.model if known else self._fleet.resolve(request.model, request.server)
        except UNKNOWN:
            model = await self._look(request.model, request)
        try:
            return await self._ask(model, request)
        except (VersionNotFound, NoServerAvailable) as error:
            if isinstance(error, VersionNotFound):
                self._pipelines.pop(model, None)  # gone, or never there: callers name what they like
            asked = named(request)
            other = await self._look(asked, request) if asked.version is None else model
            if other == model:
                raise
        return await self._ask(other, request)

    async def _look(self, asked: ModelRef, request: PredictionRequest) -> ModelRef:
        """The version that stands for the one `asked` for, which may have come since the servers said."""
        wait = PATIENCE
        if request.deadline is not None:
            wait = max(0.0, min(wait, request.deadline - asyncio.get_running_loop().time()))
        try:
            return self._fleet.resolve(asked, request.server)
        except UNKNOWN:
            await self._fleet.refresh(max_age=LOOK_AGAIN, wait=wait)
        return self._fleet.resolve(asked, request.server)

    def _ask(self, model: ModelRef, request: PredictionRequest) -> Awaitable[PredictionResult]:
        pipeline = self._pipelines.get(model) or self._pipeline(model)
        return pipeline.predict(request if model == request.model else request.to(model))

    def recall(self, request: PredictionRequest) -> PredictionResult | PredictionRequest:
        """What `predict` would answer, where that is known without waiting; else what it is to be asked."""
        if request.server is not ANY_SERVER:
            return request
        asked = named(request)
        try:
            model = self._fleet.resolve(asked)
        except UNKNOWN:
            return request
        recall = self._pipeline(model).recall
        if recall is None:
            return request
        found = recall(request, model)
        if isinstance(found, PredictionResult):
            return found
        return Pinned.of(request, model, found) if asked.version is None else request.to(model, found)

    async def remembered(self, request: PredictionRequest) -> PredictionResult | None:
        """As `recall`, but looks into a cache that is elsewhere, too; None where a model has to be asked."""
        known = self.recall(request)
        if not isinstance(known, PredictionRequest):
            return known
        try:
            model = self._fleet.resolve(named(request))
        except UNKNOWN:
            return None
        lookup = self._pipeline(model).lookup
        return None if lookup is None else await lookup(known.to(model))

    async def expect(self, model: ModelRef) -> None:
        """Raise ModelNotFound or VersionNotFound where nobody serves `model`; who cannot be asked may."""
        try:
            self._fleet.resolve(model)
        except UNKNOWN:
            await self._fleet.refresh(max_age=LOOK_AGAIN, wait=PATIENCE)
            with contextlib.suppress(NoServerAvailable):
                self._fleet.resolve(model)

    def _pipeline(self, model: ModelRef) -> Pipeline:
        known = self._pipelines.get(model)
        if known is None:
            self._drop()
            known = self._pipelines[model] = self._make_pipeline(model)
        return known

    def _drop(self) -> None:
        """Drop the pipelines of versions that are gone, and the oldest of too many that may be invented."""
        served = {ModelRef(each.name, each.version) for each in self._fleet.models()}
        unsaid = [ref for ref in self._pipelines if ref not in served]
        believed = [ref for ref in unsaid if ModelRef(ref.name) in served]
        kept = set(believed[-UNVERIFIED + 1 :])
        for ref in unsaid:
            if ref not in kept:
                del self._pipelines[ref]

    def _check_address(self, request: PredictionRequest) -> None:
        if not self._fleet.at(request.server):
            message = "No configured server has this host and port; leave them out to use any."
            wrong = [("/host", request.server.host), ("/port", request.server.port)]
            errors = [FieldError(pointer, message) for pointer, value in wrong if value is not None]
            raise InvalidRequest(message, errors)

    @staticmethod
    def _refuse(result: PredictionResult) -> NoReturn:
        refused = [(i, p) for i, p in enumerate(result.predictions) if isinstance(p, Refusal)]
        errors = [FieldError(f"/instances/{i}", refusal.message) for i, refusal in refused]
        message = f"The model refused {len(refused)} of {len(result.predictions)} instances."
        raise InputRejectedByModel(message, errors, code=refused[0][1].code)
