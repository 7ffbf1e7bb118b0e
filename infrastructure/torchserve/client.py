"""Predictions by a TorchServe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from domain.errors import (
    FieldError,
    InputRejectedByModel,
    InvalidRequest,
    ModelNotFound,
    ServerFault,
    VersionNotFound,
)
from domain.prediction import PredictionResult, Refusal
from infrastructure.torchserve import wire
from infrastructure.torchserve.endpoint import Endpoint, segment
from infrastructure.torchserve.exchange import MEBIBYTE
from infrastructure.torchserve.failures import failure
from infrastructure.torchserve.fan_out import fan_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from domain.prediction import Json, ModelRef, Prediction, PredictionRequest
    from infrastructure.torchserve.exchange import Answer
    from infrastructure.torchserve.key_file import KeyFile

AT_ONCE = 8  # requests for single instances; TorchServe's queue holds 100 by default, for all callers


def always_instances(_name: str) -> wire.Payload:
    """Every model's handler takes `{"instances": […]}`."""
    return "instances"


class TorchServeClient:
    """A server's Predictor: `POST {url}/predictions/{model}[/{version}]`.

    `http` is shared and stays open; see connections.http_client for what it should be able to do.
    `keys` are this server's, None where it wants none. `payload` says by name what a model's handler takes.
    Nothing of a caller's headers reaches a handler.
    Raises what failures.failure says, InvalidRequest, ServerUnreachable, ServerTimeout, ServerFault.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: str,
        *,
        keys: KeyFile | None = None,
        payload: Callable[[str], wire.Payload] = always_instances,
        max_answer_bytes: int = 64 * MEBIBYTE,
    ) -> None:
        self._port = Endpoint(http, url, keys=keys, kind="inference", max_answer_bytes=max_answer_bytes)
        self._payload = payload

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        path = prediction_path(request.model)
        ask = self._one_by_one if self._payload(request.model.name) == "body" else self._together
        return PredictionResult(request.model, await ask(path, request))

    async def _together(self, path: str, request: PredictionRequest) -> tuple[Prediction, ...]:
        answer = await self._ask(path, wire.together(request), request.model)
        try:
            return wire.predictions(answer.body, len(request.instances))
        except ValueError as error:
            raise _nonsense() from error

    async def _one_by_one(self, path: str, request: PredictionRequest) -> tuple[Prediction, ...]:
        if request.parameters:
            message = "This model takes no parameters."
            raise InvalidRequest(message, [FieldError("/parameters", message)])

        async def one(instance: Json) -> Prediction:
            try:
                answer = await self._ask(path, wire.encode(instance), request.model)
            except InputRejectedByModel as error:
                return Refusal(error.code, str(error))
            try:
                return wire.prediction(wire.decode(answer.body))
            except ValueError as error:
                raise _nonsense() from error

        return tuple(await fan_out(one, request.instances, at_once=AT_ONCE))

    async def _ask(self, path: str, content: bytes, model: ModelRef) -> Answer:
        answer = await self._port.ask("POST", path, content)
        if answer.status != httpx.codes.OK:
            raise failure(answer, model)
        return answer


def prediction_path(model: ModelRef) -> str:
    """Raises ModelNotFound or VersionNotFound where no server could be asked for such a name."""
    name = segment(model.name)
    if name is None:
        raise ModelNotFound(f"{wire.shortened(model.name)!r} cannot be the name of a model.")
    if model.version is None:
        return f"/predictions/{name}"
    version = segment(model.version)
    if version is None:
        raise VersionNotFound(f"{wire.shortened(model.version)!r} cannot be a version of a model.")
    return f"/predictions/{name}/{version}"


def _nonsense() -> ServerFault:
    return ServerFault("The model's handler did not answer with one JSON prediction for each instance.")
