"""Remembers predictions in this process, within a bound on memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING

from pydantic_core import from_json, to_json

from domain.ports import Cached

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from domain.prediction import Json

ENTRY_BYTES = 400  # beside its JSON: key, tuple, float and place in a table that is a quarter full; by RSS
SURELY_FLAT = 256  # bytes: too few to nest as deep as the parser refuses, which is 200
EXAMINED = 5  # entries looked at to find an expired one before a live one is evicted; as many as Redis does


class MemoryCache:
    """A PredictionCache and Memory of at most `max_bytes`, that forgets the least recently used first.

    Predictions are kept as JSON: a third of the memory of the objects, nothing for the garbage collector
    to walk, and every hit is a copy of its own, which its caller may change. `clock` is any steady clock,
    in seconds.
    """

    def __init__(self, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()  # expiry, JSON
        self._size = 0

    @property
    def size(self) -> int:
        """The bytes of memory that all entries take."""
        return self._size

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, fingerprints: Sequence[bytes]) -> Sequence[Cached | None]:
        return self.peek(fingerprints)

    def peek(self, fingerprints: Sequence[bytes]) -> Sequence[Cached | None]:
        now = self._clock()
        entries = self._entries
        found: list[Cached | None] = []
        for fingerprint in fingerprints:
            entry = entries.get(fingerprint)
            if entry is None:
                found.append(None)
            elif entry[0] > now:
                entries.move_to_end(fingerprint)
                found.append(Cached(from_json(entry[1]), entry[0] - now))
            else:
                self._drop(fingerprint)
                found.append(None)
        return found

    async def put(self, predictions: Mapping[bytes, Json], ttl: float) -> bool:
        """One that is alone larger than the whole cache is not remembered, nor what JSON cannot say."""
        if ttl <= 0:
            return False
        expires = self._clock() + ttl
        stored = True
        for fingerprint, each in predictions.items():
            stored = self._put(fingerprint, each, expires) and stored
        return stored

    def _put(self, fingerprint: bytes, prediction: Json, expires: float) -> bool:
        if fingerprint in self._entries:
            self._drop(fingerprint)
        try:
            text = to_json(prediction, inf_nan_mode="constants")
            if len(text) > SURELY_FLAT:
                from_json(text)  # nested too deep to be read again?
        except ValueError:
            return False
        size = len(text) + ENTRY_BYTES
        if size > self._max_bytes:
            return False
        if self._size + size > self._max_bytes:
            self._make_room(size)
        self._entries[fingerprint] = (expires, text)
        self._size += size
        return True

    def _make_room(self, size: int) -> None:
        now = self._clock()
        while self._size + size > self._max_bytes:
            self._drop(self._victim(now))

    def _victim(self, now: float) -> bytes:
        entries = self._entries
        for fingerprint in islice(entries, EXAMINED):
            if entries[fingerprint][0] <= now:
                return fingerprint
        return next(iter(entries))

    def _drop(self, fingerprint: bytes) -> None:
        entry = self._entries.pop(fingerprint, None)
        if entry is not None:
            self._size -= len(entry[1]) + ENTRY_BYTES
