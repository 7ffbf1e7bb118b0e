"""Predictions by a TorchServe."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

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
from infrastructure.torchserve.endpoint import asked_again, segment
from infrastructure.torchserve.failures import failure
from infrastructure.torchserve.fan_out import fan_out

if TYPE_CHECKING:
    from collections.abc import Callable

    from domain.prediction import Json, ModelRef, Prediction, PredictionRequest
    from infrastructure.torchserve.channel import Channel
    from infrastructure.torchserve.exchange import Answer
    from infrastructure.torchserve.key_file import KeyFile

OK = 200
AT_ONCE = 8  # requests for single instances; TorchServe's queue holds 100 by default, for all callers


def always_instances(_name: str) -> wire.Payload:
    """Every model's handler takes `{"instances": […]}`."""
    return "instances"


class TorchServeClient:
    """A server's Predictor: `POST {url}/predictions/{model}[/{version}]`.

    `channel` leads to the server and stays open. `keys` are this server's, None where it wants none.
    `payload` says by name what a model's handler takes. Nothing of a caller's headers reaches a handler.
    How long an answer may take is for the caller to say, by cancelling.
    Raises what failures.failure says, InvalidRequest, ServerUnreachable, ServerFault.
    """

    def __init__(
        self,
        channel: Channel,
        *,
        keys: KeyFile | None = None,
        payload: Callable[[str], wire.Payload] = always_instances,
    ) -> None:
        self._channel = channel
        self._keys = keys
        self._payload = payload

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        model = request.model
        path = prediction_path(model)
        if self._payload(model.name) == "body":
            return PredictionResult(model, await self._one_by_one(path, request))
        answer = await self._ask(path, wire.together(request), model)
        try:
            return PredictionResult(model, wire.predictions(answer.body, len(request.instances)))
        except ValueError as error:
            raise _nonsense() from error

    async def _one_by_one(self, path: str, request: PredictionRequest) -> tuple[Prediction, ...]:
        if request.parameters:
            message = "This model takes no parameters."
            raise InvalidRequest(message, [FieldError("/parameters", message)])

        one = partial(self._one, path, request.model)
        if len(request.instances) == 1:
            return (await one(request.instances[0]),)
        return tuple(await fan_out(one, request.instances, at_once=AT_ONCE))

    async def _one(self, path: str, model: ModelRef, instance: Json) -> Prediction:
        try:
            answer = await self._ask(path, wire.encode(instance), model)
        except InputRejectedByModel as error:
            return Refusal(error.code, str(error))
        try:
            return wire.prediction(wire.decode(answer.body))
        except ValueError as error:
            raise _nonsense() from error

    async def _ask(self, path: str, content: bytes, model: ModelRef) -> Answer:
        key = None if self._keys is None else await self._keys.key("inference")
        answer = await self._channel.post(path, content, key)
        if answer.refuses_key:
            send = partial(self._channel.post, path, content)
            answer = await asked_again(send, self._keys, "inference", refused=key)
        if answer.status != OK:
            raise failure(answer, model)
        return answer


def prediction_path(model: ModelRef) -> str:
    """Raises ModelNotFound or VersionNotFound where no server could be asked for such a name."""
    return _path(model.name, model.version)


@lru_cache(1024)
def _path(model: str, version: str | None) -> str:
    name = segment(model)
    if name is None:
        raise ModelNotFound(f"{wire.shortened(model)!r} cannot be the name of a model.")
    if version is None:
        return f"/predictions/{name}"
    exact = segment(version)
    if exact is None:
        raise VersionNotFound(f"{wire.shortened(version)!r} cannot be a version of a model.")
    return f"/predictions/{name}/{exact}"


def _nonsense() -> ServerFault:
    return ServerFault("The model's handler did not answer with one JSON prediction for each instance.")
