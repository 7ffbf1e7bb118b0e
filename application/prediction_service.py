"""The way of a request through the gateway: find the model, run its pipeline, speak for the model."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NoReturn

from domain.errors import (
    FieldError,
    InputRejectedByModel,
    InvalidRequest,
    ModelNotFound,
    NoServerAvailable,
    VersionNotFound,
)
from domain.prediction import ANY_SERVER, PredictionRequest, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from application.fleet import Fleet
    from application.pipeline import Pipeline
    from domain.prediction import ModelRef, PredictionResult

UNKNOWN = (ModelNotFound, VersionNotFound, NoServerAvailable)
PATIENCE = 0.5  # seconds that a caller waits for servers to say what they serve
LOOK_AGAIN = 1.0  # seconds: how old the fleet's word may be before an unknown model is believed unknown


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
        """The same, with a Refusal in the place of each instance that the model refused."""
        if request.server is not ANY_SERVER:
            self._check_address(request)
        try:
            model = self._fleet.resolve(request.model, request.server)
        except UNKNOWN:
            await self._fleet.refresh(max_age=LOOK_AGAIN, wait=PATIENCE)  # it may have come since
            model = self._fleet.resolve(request.model, request.server)
        if model != request.model:
            request = request.to(model)
        return await self._pipeline(model).predict(request)

    def recall(self, request: PredictionRequest) -> PredictionResult | PredictionRequest:
        """What `predict` would answer, where that is known without waiting; else what it is to be asked."""
        if request.server is not ANY_SERVER:
            return request
        try:
            model = self._fleet.resolve(request.model)
        except UNKNOWN:
            return request
        recall = self._pipeline(model).recall
        return request if recall is None else recall(request.to(model))

    async def remembered(self, request: PredictionRequest) -> PredictionResult | None:
        """As `recall`, but looks into a cache that is elsewhere, too; None where a model has to be asked."""
        known = self.recall(request)
        if not isinstance(known, PredictionRequest):
            return known
        try:
            model = self._fleet.resolve(request.model)
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
            served = {(m.name, m.version) for m in self._fleet.models()}
            for gone in [ref for ref in self._pipelines if (ref.name, ref.version) not in served]:
                del self._pipelines[gone]
            known = self._pipelines[model] = self._make_pipeline(model)
        return known

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
