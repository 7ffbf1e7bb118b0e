"""Remembers predictions in a Redis that several processes share."""

from __future__ import annotations

import struct
import time
import zlib
from typing import TYPE_CHECKING

from pydantic_core import PydanticSerializationError, from_json, to_json

from domain.ports import Cached

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from domain.ports import Condition
    from domain.prediction import Json
    from infrastructure.redis_connection import RedisConnection

HEADER = struct.Struct("<cd")  # format, and when it expires in seconds since 1970
PLAIN, DEFLATED = b"1", b"2"
WORTH_DEFLATING = 1024  # bytes of JSON
LARGEST_JSON = 16  # times `max_value_bytes`: neither compressed nor unpacked where it is larger


class RedisCache:
    """A PredictionCache in Redis, as a rule a fraction of a millisecond away.

    `put` does not wait: True means sent; what is sent is done before anything that is sent later.
    A value takes `max_value_bytes` at most, else it is not stored: the round trip it travels in keeps
    all others waiting. What the whole takes is Redis's to bound: every key expires, so set `maxmemory`
    and `maxmemory-policy volatile-lru` there. `clock` is the wall clock, which the processes share.
    `unanswered` counts the look-ups that were misses because Redis did not answer in time.
    """

    def __init__(
        self,
        redis: RedisConnection,
        *,
        prefix: bytes = b"dispatcher:p:",
        max_value_bytes: int = 65_536,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._max_value_bytes = max_value_bytes
        self._max_json_bytes = LARGEST_JSON * max_value_bytes
        self._clock = clock
        self.unanswered = 0

    async def get(self, fingerprints: Sequence[bytes]) -> Sequence[Cached | None]:
        values = await self._redis.read([self._prefix + each for each in fingerprints])
        if values is None:
            self.unanswered += 1
            return [None] * len(fingerprints)
        now = self._clock()
        return [None if value is None else self._decode(value, now) for value in values]

    async def put(self, predictions: Mapping[bytes, Json], ttl: float) -> bool:
        milliseconds = int(ttl * 1000)
        if milliseconds < 1:
            return not predictions
        expires = self._clock() + ttl
        encoded = {key: self._encode(prediction, expires) for key, prediction in predictions.items()}
        commands = [
            ("SET", self._prefix + key, value, "PX", milliseconds)
            for key, value in encoded.items()
            if value is not None
        ]
        sent = self._redis.post(commands) if commands else True
        return sent and len(commands) == len(encoded)

    async def condition(self) -> Condition:
        """As Component.condition."""
        return await self._redis.condition()

    def _encode(self, prediction: Json, expires: float) -> bytes | None:
        """None at what is too large, or what JSON cannot say."""
        try:
            text = to_json(prediction, inf_nan_mode="constants")
        except PydanticSerializationError:
            return None
        if len(text) > self._max_json_bytes:
            return None
        form = PLAIN
        if len(text) > WORTH_DEFLATING:
            deflated = zlib.compress(text, 1)
            if len(deflated) < len(text):
                form, text = DEFLATED, deflated
        value = HEADER.pack(form, expires) + text
        return value if len(value) <= self._max_value_bytes else None

    def _decode(self, value: bytes, now: float) -> Cached | None:
        """None at what has expired, and at what is not ours."""
        try:
            form, expires = HEADER.unpack_from(value)
            if not expires > now:
                return None
            body = value[HEADER.size :]
            if form == DEFLATED:
                body = zlib.decompressobj().decompress(body, self._max_json_bytes)
            elif form != PLAIN:
                return None
            return Cached(from_json(body), expires - now)
        except (struct.error, zlib.error, ValueError):
            return None
