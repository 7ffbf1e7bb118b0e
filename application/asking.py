"""An outcome for every instance of a job: patience for what passes, bisection for what does not."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, TypeAlias

from domain.error_response import kind
from domain.errors import (
    DeadlineExceeded,
    DispatchError,
    InputRejectedByModel,
    InternalError,
    InvalidRequest,
    ModelNotFound,
    PayloadTooLarge,
    ServerBusy,
    ServerFault,
    ServerTimeout,
    ServerUnreachable,
    Unavailable,
    VersionNotFound,
)
from domain.job import Failure
from domain.prediction import PredictionRequest, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from domain.job import Job
    from domain.ports import Predictor
    from domain.prediction import Json, Prediction

LOGGER = logging.getLogger("dispatcher.jobs")

Outcome: TypeAlias = "Prediction | Failure"

GROUP = 32  # instances in one request
GROUPS = 4  # in flight for one chunk
FAULTS = 3  # that a model may answer to one instance
UNKNOWN = 60.0  # seconds that a model may be unknown: its server may be starting
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two attempts

LATE = 2  # times in a row that many instances may be late together

AGAIN = (ServerFault, ServerTimeout, InternalError)
"""What another attempt may end otherwise."""
GUILTY = (InputRejectedByModel, InvalidRequest, PayloadTooLarge, DeadlineExceeded, *AGAIN)
"""What one instance may bring upon its neighbours."""
PASSING = (Unavailable, DeadlineExceeded, ServerBusy, ServerUnreachable)
"""What passes with time, whatever is asked."""
GONE = (ModelNotFound, VersionNotFound)


class Asking:
    """Asks `predict` about the instances of one job. `chance`, in [0, 1), spreads attempts (equal jitter).

    It goes on for ever where nobody can answer: whoever asks sets a limit, and is told by `answered` of
    every answer, by `failed` of every failure that is only waited out. `version` answered last.
    """

    def __init__(
        self,
        job: Job,
        predict: Predictor,
        *,
        chance: Callable[[], float],
        answered: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self.version: str | None = None
        self._answered = answered
        self._failed = failed
        self._job = job
        self._predict = predict
        self._chance = chance
        self._free = asyncio.Semaphore(GROUPS)

    async def outcomes(self, instances: Sequence[Json]) -> list[Outcome]:
        """One for each of `instances`, in order."""
        if len(instances) <= GROUP:
            return await self._group(instances)
        async with asyncio.TaskGroup() as tasks:
            groups = [
                tasks.create_task(self._in_turn(instances[start : start + GROUP]))
                for start in range(0, len(instances), GROUP)
            ]
        return [outcome for group in groups for outcome in group.result()]

    async def _in_turn(self, instances: Sequence[Json]) -> list[Outcome]:
        async with self._free:
            return await self._group(instances)

    async def _group(self, instances: Sequence[Json]) -> list[Outcome]:
        if len(instances) == 1:
            return [await self._single(instances[0])]
        try:
            return await self._ask(instances)
        except GUILTY:
            half = len(instances) // 2
            return [*await self._group(instances[:half]), *await self._group(instances[half:])]
        except DispatchError as error:
            return [Failure.of(error)] * len(instances)

    async def _single(self, instance: Json) -> Outcome:
        faults = 0
        while True:
            try:
                return (await self._ask((instance,)))[0]
            except AGAIN as error:
                faults += 1
                if faults == FAULTS:
                    return Failure.of(error)
                await self._pause(faults)
            except DispatchError as error:
                return Failure.of(error)

    async def _ask(self, instances: Sequence[Json]) -> list[Outcome]:
        """Ask until there is an answer, or an error that does not pass."""
        job = self._job
        request = PredictionRequest(
            job.model,
            tuple(instances),
            job.parameters,
            partition=job.partition,
            cache=job.cache,
            bulk=job.bulk,
        )
        loop = asyncio.get_running_loop()
        failures, late, gone_since = 0, 0, None
        while True:
            try:
                result = await self._predict(request)
            except PASSING as error:
                gone_since = None
                late = late + 1 if isinstance(error, DeadlineExceeded) else 0
                if late == LATE and len(instances) > 1:
                    raise  # one of them may hang, or they are too many
                if not late or len(instances) == 1:
                    self._failed()  # else there is more to be tried than to wait
            except GONE:
                gone_since = loop.time() if gone_since is None else gone_since
                if loop.time() - gone_since > UNKNOWN:
                    raise
            except DispatchError:
                self._answered()  # in a way: somebody worked on it
                raise
            except Exception as error:  # a mistake of ours costs the instance that brings it about
                LOGGER.exception("instances of job %s could not be asked", job.id)
                raise InternalError from error
            else:
                self.version = result.model.version or self.version
                self._answered()
                return [_outcome(each) for each in result.predictions]
            failures += 1
            await self._pause(failures)

    async def _pause(self, failures: int) -> None:
        longest = min(FIRST_PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE)
        await asyncio.sleep(longest * (0.5 + self._chance() / 2))


def outcome_line(outcome: Outcome) -> bytes:
    """As it is stored, a line of JSON: `{"prediction": …}` or `{"error": <the fields of Failure>}`."""
    if isinstance(outcome, Failure):
        error = {"kind": outcome.kind, "detail": outcome.detail, "code": outcome.code}
        return json.dumps({"error": error}).encode() + b"\n"
    return json.dumps({"prediction": outcome}, separators=(",", ":")).encode() + b"\n"


def _outcome(prediction: Prediction) -> Outcome:
    if isinstance(prediction, Refusal):
        return Failure(kind(InputRejectedByModel), prediction.message, prediction.code)
    return prediction
