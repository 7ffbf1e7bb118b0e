"""What an answer without predictions means: whom to blame, and what to tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from operator import itemgetter
from typing import TYPE_CHECKING

import httpx

from interface.batch.stops import Unusable

if TYPE_CHECKING:
    from interface.batch.rows import Problem

RECOVERY = 1.0  # seconds that a server gets that has failed

PROBLEMS = "/problems/"
ROWS_OWN = {"invalid-request", "malformed-request", "payload-too-large", "input-rejected-by-model"}
UNKNOWN = {"model-not-found", "version-not-found"}
PERHAPS_ROWS_OWN = {"server-fault", "server-timeout", "internal-error"}
PASSING_STATUSES = {408, 425, 429}
WRONG_DOOR = {401, 403, 404, 405}
_NEEDED = itemgetter("pointer", "detail")  # of what is wrong with one part
POINTER = re.compile(r"#/instances/(\d+)(?:/.*)?", re.DOTALL)


class Blame(Enum):
    """Whom a failure is to be blamed on."""

    MOMENT = "it will pass"
    EITHER = "it may pass, and it may be a row's"
    MODEL = "there is no such model, or not just now"
    ROWS = "it will come again with these rows"


@dataclass(frozen=True, slots=True)
class Failure:
    """A request without predictions. `retry_after` is in seconds."""

    problem: Problem
    blame: Blame
    status: int = 0
    retry_after: float = 0.0

    @classmethod
    def of(cls, answer: httpx.Response) -> Failure:
        """What a status other than 200 means. Raises Unusable where no row can ever be answered."""
        status = answer.status_code
        problem = _problem(answer)
        kind = str(problem.get("type", "")).removeprefix(PROBLEMS)
        if kind in PERHAPS_ROWS_OWN:
            return cls(problem, Blame.EITHER, status, RECOVERY)
        if kind in ROWS_OWN:
            if kind == "invalid-request" and not _about_instances(problem):
                raise Unusable(problem["detail"])
            return cls(problem, Blame.ROWS, status)
        if httpx.codes.is_server_error(status) or status in PASSING_STATUSES:
            return cls(problem, Blame.MOMENT, status, _retry_after(answer))
        if kind in UNKNOWN:
            return cls(problem, Blame.MODEL, status, RECOVERY)
        if status in WRONG_DOOR or not httpx.codes.is_client_error(status):
            raise Unusable(f"{answer.url.host} answers {status}: {problem['detail']}")
        return cls(problem, Blame.ROWS, status)

    @property
    def too_slow(self) -> bool:
        """Whether the time for the request was over."""
        return self.status == httpx.codes.GATEWAY_TIMEOUT

    def pointed_at(self, rows: int) -> dict[int, str]:
        """The instances that are to blame alone, and why, as far as the problem says."""
        found: dict[int, str] = {}
        for error in self.problem.get("errors", []) if self.blame is Blame.ROWS else []:
            match = POINTER.fullmatch(error["pointer"])
            if match and int(match[1]) < rows:
                found[int(match[1])] = error["detail"]
        return found

    def told(self, detail: str | None = None) -> Problem:
        """The problem for one row, without what is about the others."""
        kept = {key: value for key, value in self.problem.items() if key not in {"errors", "error"}}
        return kept if detail is None else kept | {"detail": detail}


def _problem(answer: httpx.Response) -> Problem:
    """The problem details of the answer, made up where whoever answered has sent none."""
    try:
        body = answer.json()
        if isinstance(body["detail"], str) and all(map(_NEEDED, body.get("errors", []))):
            return dict(body)
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    reason = answer.reason_phrase or "no reason"
    detail = f"The answer was {answer.status_code} ({reason})."
    return {"type": "about:blank", "title": reason, "status": answer.status_code, "detail": detail}


def _about_instances(problem: Problem) -> bool:
    pointers = [error["pointer"] for error in problem.get("errors", [])]
    return any(each == "#" or each.startswith("#/instances") for each in pointers)


def _retry_after(answer: httpx.Response) -> float:
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0
