"""Telling a caller's server that a job is over: the plan, and what came of it.

Source of the plan and the words: Standard Webhooks 1.0 (standardwebhooks.com).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

RETRY_AFTER = (5.0, 300.0, 1_800.0, 7_200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Seconds between one attempt and the next; after the last of them it is given up."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call: when (Unix time), the HTTP status (None: no answer), and why it does not count, if so."""

    at: float
    status: int | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where to tell of a job's end, what was tried, and when it is tried next (None: not any more).

    `attempts` are all there were, `planned` how many of the present plan were made.
    """

    url: str
    attempts: tuple[Attempt, ...] = ()
    planned: int = 0
    next_at: float | None = None
    delivered: bool = False

    def scheduled(self, now: float) -> Delivery:
        """To be tried now, and by the whole plan: the job is over, or a person asks for it again."""
        return replace(self, planned=0, next_at=now, delivered=False)

    def claimed(self, until: float) -> Delivery:
        """Somebody tries; others leave it alone until then."""
        return replace(self, next_at=until)

    def attempted(self, attempt: Attempt) -> Delivery:
        """After `attempt`: done where it was accepted, else planned again as long as the plan goes."""
        attempts, made = (*self.attempts, attempt), self.planned + 1
        if attempt.problem is None:
            return replace(self, attempts=attempts, planned=made, next_at=None, delivered=True)
        again = attempt.at + RETRY_AFTER[made - 1] if made <= len(RETRY_AFTER) else None
        return replace(self, attempts=attempts, planned=made, next_at=again)
