"""A batch, and the callers whose instances travel in it."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from domain.batch import Waiting
from domain.errors import DeadlineExceeded, InputRejectedByModel, Overloaded, ServerFault
from domain.prediction import ANY_SERVER, PredictionRequest, PredictionResult, Refusal

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from domain.batch import BatchQueue
    from domain.errors import DispatchError
    from domain.prediction import ModelRef, Prediction

BROKEN = 4  # callers of one batch whose requests fault alone, while nothing of it is answered


@dataclass(slots=True, eq=False)
class Caller:
    """A request that waits for `answer`; `arrival` is its number, `since` the time it came."""

    request: PredictionRequest
    question: Hashable
    deadline: float
    arrival: int
    since: float
    answer: asyncio.Future[PredictionResult]
    predictions: list[Prediction]
    missing: int
    server_seconds: float = 0.0

    @classmethod
    def of(cls, request: PredictionRequest, arrival: int, since: float) -> Caller:
        size = len(request.instances)
        deadline = math.inf if request.deadline is None else request.deadline
        answer: asyncio.Future[PredictionResult] = asyncio.get_running_loop().create_future()
        return cls(request, question_of(request), deadline, arrival, since, answer, [None] * size, size)

    def waiting(self, costs: Sequence[int]) -> list[Waiting[Caller]]:
        """Its instances, which cost `costs`."""
        return [Waiting(self.deadline, self.arrival, i, cost, self) for i, cost in enumerate(costs)]

    def take(self, position: int, prediction: Prediction, model: ModelRef, server_seconds: float) -> None:
        """One of its predictions; the last wakes the caller."""
        self.predictions[position] = prediction
        self.server_seconds = max(self.server_seconds, server_seconds)
        self.missing -= 1
        if self.missing == 0 and not self.answer.done():
            self.answer.set_result(PredictionResult(model, tuple(self.predictions), self.server_seconds))

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(slots=True, eq=False)
class Batch:
    """A batch in flight: whether anything of it is answered, and how many requests faulted alone."""

    members: Sequence[Waiting[Caller]]
    answered: bool = False
    faults: int = 0

    def abandoned(self) -> bool:
        return all(member.caller.answer.done() for member in self.members)

    def broken(self) -> bool:
        """Whether the server is to blame rather than what it was asked."""
        return self.faults >= BROKEN and not self.answered

    def blame(self, guilty: Waiting[Caller], error: DispatchError) -> None:
        """`error` is of this one alone: the instance's, or its request's where it is a fault."""
        caller = guilty.caller
        if isinstance(error, ServerFault):
            self.faults += 1
        if isinstance(error, InputRejectedByModel) and len(caller.predictions) > 1:
            caller.take(guilty.position, Refusal(error.code, str(error)), caller.request.model, 0.0)
        else:
            caller.fail(error)


def question_of(request: PredictionRequest) -> Hashable:
    """What requests must have in common to travel together; as text, because Python thinks True equals 1."""
    if not request.parameters and request.server == ANY_SERVER:
        return None
    try:
        return json.dumps(request.parameters, sort_keys=True), request.server
    except (ValueError, RecursionError):
        return object()  # it cannot be compared, and travels with nobody


def callers(members: Sequence[Waiting[Caller]]) -> int:
    return len({member.arrival for member in members})


def wanted(members: Sequence[Waiting[Caller]]) -> list[Waiting[Caller]]:
    """Those whose callers still wait for them; those that are too late fail."""
    now = asyncio.get_running_loop().time()
    for member in members:
        if member.deadline <= now:
            member.caller.fail(DeadlineExceeded())
    return [member for member in members if not member.caller.answer.done()]


def give_way(queue: BatchQueue[Caller], needed: float) -> list[Caller]:
    """Those who would not see the end of a batch of `needed` seconds leave `queue`, and fail.

    Others use the place: the last in line stays, whatever its deadline, so that pessimism cannot last.
    """
    now = asyncio.get_running_loop().time()
    late = {member.arrival: member.caller for member in queue.due(now + needed)}
    for caller in late.values():
        queue.remove(caller.deadline, caller.arrival)
        caller.fail(_too_late(needed, caller.deadline - now))
    return list(late.values())


def _too_late(needed: float, remaining: float) -> DispatchError:
    if remaining <= 0.0:
        return DeadlineExceeded()
    return Overloaded(
        f"Others wait who have more time: yours is over in {remaining:.2g} s, "
        f"and the next batch is answered in {needed:.2g} s.",
        needed,
    )


def fail_all(members: Sequence[Waiting[Caller]], error: Exception) -> None:
    for member in members:
        member.caller.fail(error)


def merged(members: Sequence[Waiting[Caller]]) -> PredictionRequest:
    """One request for all, until the latest of their deadlines; what concerns the callers is left behind."""
    first = members[0].caller.request
    deadline = max(member.deadline for member in members)
    return PredictionRequest(
        first.model,
        tuple([member.caller.request.instances[member.position] for member in members]),
        first.parameters,
        first.server,
        None if deadline == math.inf else deadline,
    )
