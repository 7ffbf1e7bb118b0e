"""Telling a caller's server that a job is over: where, the plan, and what came of it.

Source of the plan and the words: Standard Webhooks 1.0 (standardwebhooks.com).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from domain.errors import FieldError, InvalidRequest

RETRY_AFTER = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds between one attempt and the next; after the last of them it is given up."""
SPREAD = 0.2  # of such a pause: the most by which chance makes it longer
GONE = 410  # the status of a server that never wants to be called again
REMEMBERED = 20  # attempts; a person may ask for more of them, for ever
LONGEST_URL = 2_048  # characters

_WRITTEN = re.compile(r"[!-~]+")  # RFC 3986: other characters are percent-encoded, or punycode
_FORBIDDEN = re.compile(r'[\\<>"^`{|}]')  # not in a URL, and read differently by different programs


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call: when (Unix time), the HTTP status (None: no answer), and why it does not count, if so.

    `retry_after` is for how many seconds the server wants to be left alone.
    """

    at: float
    status: int | None = None
    problem: str | None = None
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where to tell of a job's end, what was tried, and when it is tried next (None: not any more).

    `attempts` are the latest REMEMBERED, `planned` is how many of the present plan were made.
    """

    url: str
    attempts: tuple[Attempt, ...] = ()
    planned: int = 0
    next_at: float | None = None
    delivered: bool = False

    @property
    def host(self) -> str:
        """Whom it calls."""
        try:
            return urlsplit(self.url).hostname or ""
        except ValueError:
            return ""

    def scheduled(self, now: float) -> Delivery:
        """To be tried now, and by the whole plan: the job is over, or a person asks for it again."""
        return replace(self, planned=0, next_at=now, delivered=False)

    def claimed(self, until: float) -> Delivery:
        """Somebody tries; others leave it alone until then."""
        return replace(self, next_at=until)

    def attempted(self, attempt: Attempt, chance: float = 0.0) -> Delivery:
        """After `attempt`: done where it was accepted, else planned again as long as the plan goes.

        A server that is gone is not called again; one that wants to be left alone is, for a day at most.
        `chance`, in [0, 1), spreads the calls of many.
        """
        tried = replace(self.noted(attempt), planned=self.planned + 1, next_at=None)
        if attempt.problem is None:
            return replace(tried, delivered=True)
        if attempt.status == GONE or self.planned >= len(RETRY_AFTER):
            return tried
        pause = max(RETRY_AFTER[self.planned], min(attempt.retry_after or 0.0, RETRY_AFTER[-1]))
        return replace(tried, next_at=attempt.at + pause * (1 + SPREAD * chance))

    def noted(self, attempt: Attempt) -> Delivery:
        """With `attempt` remembered, and nothing else: the plan has gone on without it."""
        return replace(self, attempts=(*self.attempts, attempt)[-REMEMBERED:])


def check_url(url: str, *, http: bool) -> None:
    """Whether a webhook may be at `url`, as far as its text says; http only where that is allowed.

    Raises InvalidRequest, which points at "/webhook_url". To where its host leads is seen when it is called.
    """
    problem = _problem(url, http=http)
    if problem is not None:
        raise InvalidRequest(f"The webhook's URL {problem}.", [FieldError("/webhook_url", problem)])


def _problem(url: str, *, http: bool) -> str | None:
    if len(url) > LONGEST_URL:
        return f"is longer than {LONGEST_URL} characters"
    if not _WRITTEN.fullmatch(url) or _FORBIDDEN.search(url):
        return "has characters that must be encoded"
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        return "has no host, or no valid port"
    if parts.scheme != "https" and not (http and parts.scheme == "http"):
        return "must begin with https://" + (" or http://" if http else "")
    return "must not have a user or a password in it" if "@" in parts.netloc else None
