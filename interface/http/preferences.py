"""What a caller asks for in headers: time, cache, priority, once only; and what the cache answers."""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING

from domain.errors import InvalidRequest
from domain.prediction import CACHE, CacheControl

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from domain.prediction import CacheUse, PredictionResult

    Headers = Mapping[bytes, bytes]

NAMES = {b"x-request-timeout", b"cache-control", b"priority", b"prefer", b"idempotency-key"}
BULK = b"5"  # and less urgent: 0 is the most urgent, 3 the default, 7 background work (RFC 9218)

_URGENCY = re.compile(rb"(?:^|,)\s*u=([0-7])\s*(?:$|[,;])")
_WAIT = re.compile(rb"(?:^|,)\s*wait\s*=\s*\"?([0-9]{1,99})\"?\s*(?:$|[,;])", re.IGNORECASE)
_KEY = re.compile(rb"[!-~]{1,255}")


def none(headers: Headers) -> bool:
    """Whether there is nothing that this module reads, as a rule."""
    return NAMES.isdisjoint(headers)


def by_name(lines: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The headers of a request, by name in lower case; several of one name are one list (RFC 9110, 5.3)."""
    headers = dict(lines)
    if len(headers) == len(lines):  # as a rule
        return headers
    values: dict[bytes, list[bytes]] = {}
    for name, value in lines:
        values.setdefault(name, []).append(value)
    return {name: b", ".join(several) for name, several in values.items()}


def deadline(headers: Headers) -> float | None:
    """The event loop's time until which the caller waits, None if unsaid. Raises InvalidRequest."""
    patience = seconds(headers)
    return None if patience is None else asyncio.get_running_loop().time() + patience


def seconds(headers: Headers) -> float | None:
    """`X-Request-Timeout` itself. Raises InvalidRequest."""
    text = headers.get(b"x-request-timeout")
    if text is None:
        return None
    try:
        value = math.nan if b"_" in text else float(text)  # Python takes 1_0 for 10
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        message = "X-Request-Timeout should be a number of seconds greater than 0."
        raise InvalidRequest(message)
    return value


def cache_control(headers: Headers) -> CacheControl:
    """A request's `Cache-Control` (RFC 9111, 5.2.1): `no-cache` and `no-store`; the rest asks nothing."""
    text = headers.get(b"cache-control")
    if text is None:
        return CACHE
    directives = {each.strip().lower() for each in text.split(b",")}
    return CacheControl(read=b"no-cache" not in directives, store=b"no-store" not in directives)


def bulk(headers: Headers, *, unsaid: bool = False) -> bool:
    """Whether the caller can wait: `Priority: u=5` or more (RFC 9218); `unsaid` where it does not say."""
    text = headers.get(b"priority")
    found = None if text is None else _URGENCY.search(text)
    return unsaid if found is None else found[1] >= BULK


def wait(headers: Headers) -> int | None:
    """`Prefer: wait=…` in seconds (RFC 7240, 4.3); what is no such preference is ignored, as it has to be."""
    text = headers.get(b"prefer")
    found = None if text is None else _WAIT.search(text)
    return None if found is None else int(found[1])


def idempotency_key(headers: Headers) -> str | None:
    """`Idempotency-Key`, None if unsaid. Raises InvalidRequest."""
    text = headers.get(b"idempotency-key")
    if text is None:
        return None
    if _KEY.fullmatch(text) is None:
        raise InvalidRequest("Idempotency-Key should be 1 to 255 visible ASCII characters.")
    return text.decode()


def cache_status(result: PredictionResult) -> bytes | None:
    """The `Cache-Status` of an answer (RFC 9211); None where no cache was asked."""
    use = result.cache
    if use is None:
        return None
    # The two usual cases, without all that others need.
    if use.hits == use.of and use.ttl is not None:
        return b"model-dispatcher; hit; ttl=%d" % math.ceil(use.ttl)
    if use.ttl is not None and use.stored and not (use.hits or use.bypassed or result.collapsed):
        return b"model-dispatcher; fwd=miss; stored; ttl=%d" % math.ceil(use.ttl)
    words = ["model-dispatcher", *_outcome(use, collapsed=result.collapsed)]
    if use.ttl is not None:
        words.append(f"ttl={math.ceil(use.ttl)}")
    return "; ".join(words).encode()


def _outcome(use: CacheUse, *, collapsed: bool) -> list[str]:
    if use.bypassed:
        words = ["fwd=request"]
    elif use.hits:
        words = ["fwd=partial", f'detail="{use.hits} of {use.of} known"']
    else:
        words = ["fwd=miss"]
    return words + ["stored"] * use.stored + ["collapsed"] * collapsed
