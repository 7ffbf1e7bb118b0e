"""What a TorchServe serves, by its management API, or by faith where it has none for us."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import quote

import httpx
from pydantic import Field, TypeAdapter, ValidationError

from domain.errors import ServerFault
from domain.fleet import ServedModel
from infrastructure.torchserve.endpoint import Endpoint, segment
from infrastructure.torchserve.exchange import MEBIBYTE
from infrastructure.torchserve.fan_out import fan_out

if TYPE_CHECKING:
    from collections.abc import Iterable

    from domain.ports import ServerProbe
    from infrastructure.torchserve.exchange import Answer
    from infrastructure.torchserve.key_file import KeyFile

T = TypeVar("T")

AT_ONCE = 8  # descriptions asked for
PAGE = 100  # models; TorchServe's own default
PAGES = 100
MAX_ANSWER_BYTES = 16 * MEBIBYTE
GONE = {"ModelNotFoundException", "ModelVersionNotFoundException"}


@dataclass(frozen=True, slots=True)
class _Listed:
    name: Annotated[str, Field(validation_alias="modelName")]


@dataclass(frozen=True, slots=True)
class _Page:
    models: list[_Listed]
    next: Annotated[str | None, Field(validation_alias="nextPageToken")] = None


@dataclass(frozen=True, slots=True)
class _Worker:
    status: str


@dataclass(frozen=True, slots=True)
class _Queue:
    free: Annotated[int, Field(validation_alias="remainingCapacity")]


@dataclass(frozen=True, slots=True)
class _Version:
    """One entry of a DescribeModel answer."""

    version: Annotated[str, Field(validation_alias="modelVersion")]
    workers: list[_Worker]
    queue: Annotated[_Queue | None, Field(validation_alias="jobQueueStatus")] = None

    def served(self, name: str, default: str | None) -> ServedModel:
        ready = sum(worker.status == "READY" for worker in self.workers)
        return ServedModel(
            name=name,
            version=self.version,
            default=self.version == default,
            workers=len(self.workers),
            workers_ready=ready,
            queue_free=None if self.queue is None else self.queue.free,
        )


_PAGE = TypeAdapter(_Page)
_VERSIONS = TypeAdapter(list[_Version])


class TorchServeManagement:
    """A server's ServerProbe: ListModels and DescribeModel, each within `seconds`.

    A model that is removed meanwhile is left out, and so is one whose name has a slash: TorchServe
    registers it, and then nobody can ask for it.
    """

    def __init__(
        self, http: httpx.AsyncClient, url: str, *, keys: KeyFile | None = None, seconds: float = 5.0
    ) -> None:
        self._port = Endpoint(
            http, url, keys=keys, kind="management", max_answer_bytes=MAX_ANSWER_BYTES, seconds=seconds
        )

    async def __call__(self) -> tuple[ServedModel, ...]:
        described = await fan_out(self._describe, await self._names(), at_once=AT_ONCE)
        return tuple(served for versions in described for served in versions)

    async def _names(self) -> list[str]:
        names: list[str] = []
        start = "0"
        for _ in range(PAGES):
            start = quote(start, safe="")
            answer = await self._port.ask("GET", f"/models?limit={PAGE}&next_page_token={start}")
            page = _parsed(_PAGE, answer)
            names += [listed.name for listed in page.models]
            if page.next is None:
                return names
            start = page.next
        raise ServerFault(f"The model server lists more than {PAGE * PAGES} models.")

    async def _describe(self, name: str) -> list[ServedModel]:
        path = _path(name)
        versions = await self._versions(f"{path}/all") if path else []
        default = versions[:1]
        if len(versions) > 1:
            default = await self._versions(str(path))  # "all" does not say which is the default
        return [each.served(name, default[0].version if default else None) for each in versions]

    async def _versions(self, path: str) -> list[_Version]:
        answer = await self._port.ask("GET", path)
        if answer.status == httpx.codes.NOT_FOUND and answer.complaint and answer.complaint.type in GONE:
            return []
        return _parsed(_VERSIONS, answer)


class Reachable:
    """A ServerProbe that believes `inner` only while the inference address `url` answers, whatever it says.

    A server whose management port alone is alive serves nobody.
    """

    def __init__(
        self,
        inner: ServerProbe,
        http: httpx.AsyncClient,
        url: str,
        *,
        keys: KeyFile | None = None,
        seconds: float = 5.0,
    ) -> None:
        self._inner = inner
        self._port = Endpoint(
            http, url, keys=keys, kind="inference", max_answer_bytes=MAX_ANSWER_BYTES, seconds=seconds
        )

    async def __call__(self) -> tuple[ServedModel, ...]:
        await self._port.ask("GET", "/ping")
        return await self._inner()


class PingProbe:
    """The ServerProbe of a server whose management API is out of reach: its `models` are believed.

    `/ping` says only that the server runs: TorchServe calls itself healthy for minutes without a worker.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: str,
        models: Iterable[str],
        *,
        keys: KeyFile | None = None,
        seconds: float = 5.0,
    ) -> None:
        self._port = Endpoint(
            http, url, keys=keys, kind="inference", max_answer_bytes=MAX_ANSWER_BYTES, seconds=seconds
        )
        self._models = tuple(ServedModel(name, None) for name in models)

    async def __call__(self) -> tuple[ServedModel, ...]:
        answer = await self._port.ask("GET", "/ping")
        if answer.status != httpx.codes.OK:
            raise ServerFault(
                f"The model server is not healthy: it answers a ping with status {answer.status}."
            )
        return self._models


def _path(name: str) -> str | None:
    quoted = segment(name)
    if quoted is None:
        return None
    if quoted.startswith("token"):  # TorchServe wants its API key wherever it sees "/token"
        quoted = "%74" + quoted[1:]
    return f"/models/{quoted}"


def _parsed(adapter: TypeAdapter[T], answer: Answer) -> T:
    if answer.status != httpx.codes.OK:
        raise ServerFault(
            f"The address is not that of a TorchServe management API: it answers with {answer.status}."
        )
    try:
        return adapter.validate_json(answer.body)
    except ValidationError as error:
        raise ServerFault("The model server's management API answers what TorchServe does not.") from error
