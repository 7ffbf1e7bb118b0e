"""Finding numbers that JSON text can spell and no float can hold, as `1e999`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domain.prediction import Json

_SUSPECT = re.compile(rb"[eE]\+?\d{3}|\d{309}")


def may_overflow(text: bytes) -> bool:
    """Whether JSON `text` spells a number so large that it may have been read as infinity; cheap."""
    return _SUSPECT.search(text) is not None


def infinite_at(value: Json) -> str | None:
    """The JSON pointer (RFC 6901) of the first infinite number in `value`, None where all are finite."""
    pending: list[tuple[str, Json]] = [("", value)]
    while pending:
        pointer, item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return pointer
        if isinstance(item, Mapping):
            pending += [(f"{pointer}/{escape(key)}", each) for key, each in item.items()]
        elif isinstance(item, Sequence) and not isinstance(item, str):
            pending += [(f"{pointer}/{i}", each) for i, each in enumerate(item)]
    return None


def escape(key: str) -> str:
    """`key` as one step of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")
