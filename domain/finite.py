"""Numbers that JSON text can spell and no float can hold, as `1e999`: parsers read them as infinity."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from domain.prediction import Json

T = TypeVar("T")

# With fewer than 200 digits and an exponent below 100, a number stays below 10^299.
_SUSPECT = re.compile(rb"[0-9](?:[eE]\+?[0-9]{3}|[0-9]{199})")  # one class in front: half the time, or less
MOST_LOOKED_AT = 10_000  # values; a pointer is a courtesy, and must not cost seconds


def overflows(text: bytes) -> bool:
    """Whether `text`, which is valid JSON, has a number that is too large for a float."""
    if _SUSPECT.search(text) is None:
        return False
    try:
        json.loads(text, parse_float=_float)
    except OverflowError:
        return True
    return False


def infinite_at(value: Json) -> str:
    """The JSON pointer (RFC 6901) of the first infinite or undefined number that is soon found in `value`.

    '' (the whole) where none is.
    """
    pending: list[tuple[str, Json]] = [("", value)]
    for _ in range(MOST_LOOKED_AT):
        if not pending:
            break
        pointer, item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return pointer
        if isinstance(item, Mapping):
            pending += [(f"{pointer}/{escape(key)}", each) for key, each in _first(item.items())]
        elif isinstance(item, Sequence) and not isinstance(item, str):
            pending += [(f"{pointer}/{i}", each) for i, each in _first(enumerate(item))]
    return ""


def escape(key: str) -> str:
    """`key` as one step of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _first(items: Iterable[T]) -> Iterable[T]:
    return islice(items, MOST_LOOKED_AT)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise OverflowError
    return value
