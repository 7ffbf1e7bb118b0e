"""The bodies of answers, as the OpenAPI document shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field


@dataclass(frozen=True, slots=True)
class DispatchAnswer:
    """What a caller of `/dispatch_model` gets."""

    model_name: str
    model_version: Annotated[str | None, Field(description="The version that answered.")]
    predictions: Annotated[list[Any], Field(description="One for each instance, in order.")]


@dataclass(frozen=True, slots=True)
class PredictAnswer:
    """What a caller of `/api/predict/` gets."""

    model_name: str
    model_version: Annotated[str | None, Field(description="The version that answered.")]
    prediction: Annotated[Any, Field(description="What the model says of the text.")]


@dataclass(frozen=True, slots=True)
class Liveness:
    """The process answers."""

    status: str


@dataclass(frozen=True, slots=True)
class ServerReport:
    """One configured model server; `state` is "ok" or what is wrong with it."""

    url: str
    state: str


@dataclass(frozen=True, slots=True)
class HealthReport:
    """`status` is "ok" or "unavailable"; `reasons` say what is missing; `models` which are ready."""

    status: str
    reasons: list[str]
    servers: dict[str, ServerReport]
    models: dict[str, bool]


@dataclass(frozen=True, slots=True)
class ComponentReport:
    """What the gateway leans on beside model servers; `state` is "ok" or what is wrong with it."""

    state: str
    counts: Annotated[
        dict[str, int], Field(description="How much waits in it, by kind; empty where it does not say.")
    ]


@dataclass(frozen=True, slots=True)
class StateReport(HealthReport):
    """As HealthReport, with every part beside the servers; `status` is still about predictions alone."""

    components: dict[str, ComponentReport]


@dataclass(frozen=True, slots=True)
class VersionReport:
    """One version of a model; `servers` says "ready" or why not, for each server by name."""

    version: str | None
    default: bool
    ready: bool
    workers: Annotated[int, Field(description="Workers ready to answer, on all servers.")]
    servers: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelReport:
    """A model; `policies` are those each request passes, outermost first."""

    name: str
    default_version: str | None
    ready: bool
    versions: list[VersionReport]
    policies: list[str]


@dataclass(frozen=True, slots=True)
class ModelList:
    """Every model that is served."""

    models: list[ModelReport]
