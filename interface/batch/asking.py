"""Asking a gateway, again and again until there is an answer for every instance."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count
from random import uniform
from typing import TYPE_CHECKING, Any

import httpx

from interface.batch.failure import RECOVERY, Blame, Failure
from interface.batch.rows import spell
from interface.batch.stops import AGAIN, GaveUp, Unusable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interface.batch.rows import Problem

TIMEOUT = 60.0  # seconds that the gateway gets for one request
TOLERANCE = 15.0  # seconds on top of it until we do not believe that it still answers
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 5.0  # seconds; full jitter (Brooker, AWS Architecture Blog, 2015)
LONGEST_RETRY_AFTER = 60.0  # seconds
TRIES = 4  # of a single row that its server fails on, before that is its answer


@dataclass(frozen=True, slots=True)
class Outcome:
    """What there is for one row: a prediction, or where there is a problem, that."""

    prediction: object = None
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """What all instances are asked with."""

    model: str
    version: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    def body(self, texts: Sequence[bytes]) -> bytes:
        """For these instances, which are JSON already."""
        rest: dict[str, Any] = {"model_name": self.model}
        if self.version is not None:
            rest["model_version"] = self.version
        if self.parameters:
            rest["parameters"] = self.parameters
        return b'%s,"instances":[%s]}' % (spell(rest)[:-1], b",".join(texts))


class Asking:
    """Asks the question through `client`, with at most `in_flight` requests at once.

    `most` instances should travel in one request; `size` is how many of them should at present: fewer where
    the answer takes too long. It gives up when nothing at all has been answered for `patience` seconds.
    """

    def __init__(
        self, client: httpx.AsyncClient, question: Question, *, most: int, in_flight: int, patience: float
    ) -> None:
        self._client = client
        self._question = question
        self._most = most
        self._slots = asyncio.Semaphore(in_flight)
        self._patience = patience
        self._answered_at = asyncio.get_running_loop().time()
        self.size = most
        self.trouble: str | None = None  # why there is no answer just now
        self.versions: set[str] = set()  # that have answered

    async def answer(self, texts: Sequence[bytes]) -> list[Outcome]:
        """An outcome for each instance, in order. Raises GaveUp and Unusable."""
        outcomes = [Outcome()] * len(texts)
        groups = [list(range(len(texts)))] if texts else []
        while groups:
            group = groups.pop()
            found = await self._settle([texts[i] for i in group])
            if isinstance(found, list):
                for i, prediction in zip(group, found, strict=True):
                    outcomes[i] = Outcome(prediction)
            elif pointed := found.pointed_at(len(group)):
                for at, detail in pointed.items():
                    outcomes[group[at]] = Outcome(problem=found.told(detail))
                groups += [[i for at, i in enumerate(group) if at not in pointed]]
            elif len(group) == 1:
                outcomes[group[0]] = Outcome(problem=found.told())
            else:
                groups += [group[len(group) // 2 :], group[: len(group) // 2]]
            groups = [each for each in groups if each]
        return outcomes

    async def _settle(self, texts: Sequence[bytes]) -> list[object] | Failure:
        """Ask until there are predictions, or a failure that waiting does not mend."""
        doubtful = 0
        for attempt in count():
            async with self._slots:
                found = await self._ask(texts)
            if isinstance(found, list) or found.blame is Blame.ROWS:
                self._progressed()
                self._grow(len(texts))
                return found
            if found.blame is Blame.MODEL and not self.versions:  # else it was there, and may come back
                raise Unusable(found.problem["detail"])
            self._shrink(found, len(texts))
            doubtful += found.blame is Blame.EITHER
            if doubtful == TRIES or (len(texts) > 1 and (doubtful or found.too_slow)):
                return found  # fewer at a time may have better luck
            await self._pause(found, attempt)
        raise AssertionError  # pragma: no cover

    async def _ask(self, texts: Sequence[bytes]) -> list[object] | Failure:
        headers = {
            "Content-Type": "application/json",
            "Priority": "u=6",
            "X-Request-Timeout": f"{TIMEOUT:g}",
        }
        body = self._question.body(texts)
        try:
            answer = await self._client.post("dispatch_model", content=body, headers=headers)
        except httpx.RequestError as error:
            return await self._without_answer(error, len(body))
        if answer.status_code != httpx.codes.OK:
            return Failure.of(answer)
        try:
            told = answer.json()
            version, predictions = told["model_version"], list(told["predictions"])
        except (ValueError, TypeError, KeyError):
            version, predictions = None, []
        if len(predictions) != len(texts):
            raise Unusable("What answers there is not a Model Dispatcher; --url says where one is.")
        self.versions.add(str(version))
        return predictions

    async def _without_answer(self, error: httpx.RequestError, size: int) -> Failure:
        """What it means that a request of `size` bytes had none.

        What is too large is refused before all of it is read, and then the connection may be reset before
        the refusal is seen (RFC 9112, 9.6): so whoever answers others may have refused these rows.
        """
        name = type(error).__name__
        if isinstance(error, httpx.ReadError | httpx.WriteError) and await self._lives():
            detail = f"The gateway breaks off ({name}) at {size:,} bytes; it may take fewer."
            problem = {"type": "about:blank", "title": "The gateway breaks off", "detail": detail}
            return Failure(problem, Blame.EITHER, retry_after=RECOVERY)
        detail = f"The gateway does not answer ({name})."
        return Failure({"title": "The gateway does not answer", "detail": detail}, Blame.MOMENT)

    async def _lives(self) -> bool:
        try:
            return (await self._client.get("health/live")).is_success
        except httpx.RequestError:
            return False

    def _progressed(self) -> None:
        self._answered_at = asyncio.get_running_loop().time()
        self.trouble = None

    def _shrink(self, failure: Failure, rows: int) -> None:
        """Too many for the time that one request has: fewer from now on."""
        if failure.too_slow and rows > 1:
            self.size = min(self.size, max(1, rows // 2))

    def _grow(self, rows: int) -> None:
        if rows >= self.size:
            self.size = min(self._most, self.size + 1)

    async def _pause(self, failure: Failure, attempt: int) -> None:
        """Wait until the next attempt. Raises GaveUp where patience is at its end."""
        detail = failure.problem["detail"]
        now = asyncio.get_running_loop().time()
        left = self._answered_at + self._patience - now
        if left <= 0:
            raise GaveUp(f"Gave up after {self._patience:g} s without an answer. {detail} {AGAIN}")
        self.trouble = detail
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 10))
        pause = max(uniform(0, longest), min(failure.retry_after, LONGEST_RETRY_AFTER))  # noqa: S311
        await asyncio.sleep(min(pause, left))
