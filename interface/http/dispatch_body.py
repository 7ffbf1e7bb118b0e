"""The bodies that ask for predictions, and reading them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from domain.prediction import ANY_SERVER, ServerAddress
from interface.http.decoding import Decoder, Inputs, Name, check_number

if TYPE_CHECKING:
    from pydantic import ConfigDict


@dataclass(frozen=True, slots=True)
class DispatchBody(Inputs):
    """What a caller of `/dispatch_model` sends."""

    host: Annotated[Name | None, Field(description="Only a configured server of this host may answer.")] = (
        None
    )
    port: Annotated[
        int | None,
        Field(strict=True, ge=1, le=65_535, description="Only a configured server of this port may answer."),
    ] = None

    @property
    def server(self) -> ServerAddress:
        """The one server the caller insists on, if any."""
        if self.host is None and self.port is None:
            return ANY_SERVER
        return ServerAddress(self.host, self.port)


@dataclass(frozen=True, slots=True)
class PredictBody:
    """What a caller of `/api/predict/` sends."""

    __pydantic_config__: ClassVar[ConfigDict] = {"extra": "forbid"}

    text: Annotated[str, Field(min_length=1, description="What the model is asked about.")]


_BODY = Decoder(DispatchBody)
_TEXT = Decoder(PredictBody)


def decode(text: bytes, max_instances: int) -> DispatchBody:
    """The body that `text` spells. Raises InvalidRequest with a pointer to each thing that is wrong."""
    body = _BODY.decode(text)
    check_number(body.instances, max_instances)
    return body


def decode_text(text: bytes) -> PredictBody:
    """The same for `/api/predict/`."""
    return _TEXT.decode(text)
