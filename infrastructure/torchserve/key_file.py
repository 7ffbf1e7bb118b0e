"""The keys of a TorchServe, from the file in which it keeps them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import httpx
from pydantic import AwareDatetime, Field, StringConstraints, TypeAdapter, ValidationError

from domain.errors import ServerError, ServerFault
from infrastructure.torchserve.exchange import MEBIBYTE, exchange, question

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Kind: TypeAlias = Literal["inference", "management"]

Secret = Annotated[str, StringConstraints(pattern=r"^[!-~]+$")]  # what a header can carry

EARLY_RENEWAL_SECONDS = 1.0  # all that a request waits while its key still works
PAUSE_SECONDS = 5.0  # between attempts to renew a key that still works
READS = 3  # at once: TorchServe empties the file before it writes, which takes it microseconds

WHAT_TO_DO = (
    "Check that TorchServe runs with token authorization, that `key_file` names the file it writes, "
    "and that this process may read it."
)

LOGGER = logging.getLogger("dispatcher.keys")


@dataclass(frozen=True, slots=True)
class _Key:
    expires: Annotated[AwareDatetime, Field(validation_alias="expiration time")]
    key: Secret = field(repr=False)


@dataclass(frozen=True, slots=True)
class _ApiKey:
    key: Secret = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Keys:
    inference: _Key
    management: _Key
    api: Annotated[_ApiKey, Field(validation_alias="API")]

    def of(self, kind: Kind) -> _Key:
        return self.inference if kind == "inference" else self.management


_FILE = TypeAdapter(_Keys)


class KeyFile:
    """`key_file.json`, which TorchServe writes at each start and whenever a key is renewed.

    It is read again as soon as it changes. A key that is about to expire, or was refused, is renewed at
    `management` (the URL of that API; None where keys are not ours to renew). The new key is only in the
    file, and its predecessor is dead before it is there: so a key is renewed only while the file still
    holds the refused one, and requests that were under way with it are refused and ask again.

    `renew_before` is in seconds, at most a third of the time a key had when it was first seen; where
    several processes share a file, give each another value, and the first renews for all.
    `now` is Unix time in seconds.
    """

    def __init__(
        self,
        path: Path,
        *,
        http: httpx.AsyncClient,
        management: str | None,
        renew_before: float = 30.0,
        seconds: float = 5.0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._http = http
        self._management = management and management.rstrip("/")
        self._renew_before = renew_before
        self._seconds = seconds
        self._now = now
        self._keys: _Keys | None = None
        self._signature: tuple[int, int, int] | None = None
        self._due: dict[str, float] = {}  # when to renew, by key
        self._paused_until = 0.0
        self._told = False
        self._renewing = asyncio.Lock()

    async def key(self, kind: Kind) -> str:
        """The key of `kind` to use now.

        Raises ServerFault where the file cannot be read and never could.
        """
        now = self._now()
        key = self._read().of(kind)
        due = self._due[key.key] <= now and self._paused_until <= now
        if due and self._management is not None and not self._renewing.locked():
            await self._renew_early(kind, key.key)
            key = self._read().of(kind)
        return key.key

    async def renewed(self, kind: Kind, refused: str) -> str:
        """Another key of `kind` than the `refused` one; the same where no other can be had.

        Raises ServerFault where the file cannot be read, or the server does not renew the key, and what
        exchange raises.
        """
        async with self._renewing:
            keys = self._latest()
            if keys.of(kind).key == refused and self._management is not None:
                await self._renew(kind, keys.api.key)
                keys = self._load()
            return keys.of(kind).key

    async def _renew_early(self, kind: Kind, expiring: str) -> None:
        try:
            async with asyncio.timeout(EARLY_RENEWAL_SECONDS), self._renewing:
                keys = self._read()
                if keys.of(kind).key == expiring:
                    await self._renew(kind, keys.api.key)
        except (ServerError, TimeoutError) as error:
            self._paused_until = self._now() + PAUSE_SECONDS
            LOGGER.warning("the %s key is about to expire and was not renewed: %r", kind, error)

    async def _renew(self, kind: Kind, api_key: str) -> None:
        request = question(self._http, "GET", f"{self._management}/token?type={kind}", api_key)
        answer = await exchange(self._http, request, max_answer_bytes=MEBIBYTE, seconds=self._seconds)
        if answer.status != httpx.codes.OK:
            message = (
                f"The model server did not renew its {kind} key. "
                "Check that the configured key file and management address are this server's own."
            )
            raise ServerFault(message)

    def _read(self) -> _Keys:
        if self._keys is None or self._signature != self._sign():
            return self._latest()
        return self._keys

    def _latest(self) -> _Keys:
        try:
            return self._load()
        except ServerFault:
            if self._keys is None:
                raise
        return self._keys  # good until refused

    def _load(self) -> _Keys:
        try:
            signature = self._sign()  # before reading: what is written from now on is seen next time
            self._keys = self._parsed()
        except (OSError, ValidationError) as error:
            if self._keys is None and not self._told:
                LOGGER.warning("cannot read the keys in %s: %s", self._path, type(error).__name__)
                self._told = True
            message = "The model server's key file is missing or cannot be read. " + WHAT_TO_DO
            raise ServerFault(message) from None  # a ValidationError quotes what it read
        self._signature = signature
        self._due = {key.key: self._due_at(key) for key in (self._keys.inference, self._keys.management)}
        return self._keys

    def _parsed(self) -> _Keys:
        for _ in range(READS - 1):
            with contextlib.suppress(ValidationError):
                return _FILE.validate_json(self._path.read_bytes())
        return _FILE.validate_json(self._path.read_bytes())

    def _sign(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ino, stat.st_size

    def _due_at(self, key: _Key) -> float:
        known = self._due.get(key.key)
        if known is not None:
            return known
        expires = key.expires.timestamp()
        return expires - min(self._renew_before, (expires - self._now()) / 3)
