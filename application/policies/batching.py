"""Adaptive batching: requests that meet travel together."""

from __future__ import annotations

import asyncio
from contextvars import Context
from typing import TYPE_CHECKING

from application.batch import Batch, Caller, callers, fail_all, give_way, merged, wanted
from domain.batch import BatchQueue, BatchSeconds, PaddedBatchQueue, Waiting, batch_cost
from domain.errors import DeadlineExceeded, InputRejectedByModel, InvalidRequest, PayloadTooLarge, ServerFault
from domain.events import BatchSent, Shed

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from domain.errors import DispatchError
    from domain.ports import Observer, Predictor
    from domain.prediction import Json, PredictionRequest, PredictionResult

CONTENT = (InputRejectedByModel, InvalidRequest, PayloadTooLarge, ServerFault)  # what one instance may cause


class Batching:
    """Sends a request at once while a slot is free; else it waits, and travels with those it meets.

    `slots()` is how many batches may be in flight now, at least one; it is read before each is sent, so
    that more of them are noticed when the next request comes or the next batch lands: whoever waits does
    so beside a batch in flight, and then all slots are filled.
    There is no timer: what gathers while all slots are busy leaves when one frees, so an idle model makes
    nobody wait and a busy one gets the larger batches, the busier it is ("group commit", Gray and Reuter,
    "Transaction Processing", 1992; adaptive batching: Crankshaw et al., "Clipper", NSDI 2017).
    Stands inside admission, which bounds those who wait, and outside retrying: a batch is retried whole.

    The unit is the instance. A batch has at most `max_size` of them, and costs at most `max_cost` by
    `cost` of each (batch.PaddedBatchQueue); larger requests are cut and put together again.
    The earliest deadline goes first; what is too late is not sent, and ends with DeadlineExceeded.
    Nor is what would be too late, as batches took of late, while others wait behind it who have more time:
    it ends with Overloaded. So under overload those are served who can be.
    Serves one version of one model; requests travel together if their parameters and server are equal.

    A batch that fails in a way that an instance may have caused is bisected, in the same slot, as by
    `git bisect`: one guilty of n costs 2·log2(n) calls more, and the others are answered. Where BROKEN
    callers' requests fault alone before anything is answered, the server is to blame, and the rest of the
    batch ends with that fault: 10 calls, not 63, for a batch of 32, and three guilty are always told apart.
    Any other error is that of all in the batch. An instance that the model rejects is a Refusal among the
    predictions of its request, or, where it is the only one, the error itself.

    A batch belongs to nobody: it goes on when callers leave, and is cancelled when all have.
    """

    def __init__(
        self,
        inner: Predictor,
        *,
        slots: Callable[[], int],
        max_size: int,
        max_cost: int | None = None,
        cost: Callable[[Json], int] | None = None,
        observe: Observer,
    ) -> None:
        self._inner = inner
        self._slots = slots
        self._max_size = max_size
        self._max_cost = max_cost
        self._cost = cost
        self._observe = observe
        self._queues: dict[Hashable, BatchQueue[Caller]] = {}
        self._seconds = BatchSeconds()
        self._lone: BatchSent | None = None
        self._arrivals = 0
        self._in_flight = 0
        self._starting: asyncio.Task[None] | None = None
        self._senders: dict[asyncio.Task[None], Batch | None] = {}

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        now = asyncio.get_running_loop().time()
        if request.deadline is not None and request.deadline <= now:
            raise DeadlineExceeded
        if self._queues or not self._free() or not self._fits(request.instances):
            return await self._wait(request, now)
        self._in_flight += 1
        self._observe(self._sent_alone(request))
        try:
            try:
                return await self._inner(request)
            except CONTENT as error:
                if len(request.instances) == 1:
                    raise
                cause = error
            return await self._apart(request, now, cause)
        finally:
            self._in_flight -= 1
            self._start()

    def _free(self) -> bool:
        """Whether one more batch may be in flight."""
        return self._in_flight == 0 or self._in_flight < self._slots()

    def _fits(self, instances: Sequence[Json]) -> bool:
        if len(instances) == 1:
            return True
        if len(instances) > self._max_size:
            return False
        return self._max_cost is None or batch_cost(self._costs(instances)) <= self._max_cost

    def _costs(self, instances: Sequence[Json]) -> list[int]:
        return [0] * len(instances) if self._cost is None else [self._cost(each) for each in instances]

    # --- a request that meets nobody, in its caller's own task

    async def _apart(self, request: PredictionRequest, now: float, cause: DispatchError) -> PredictionResult:
        caller = Caller.of(request, 0, now)
        members = caller.waiting([0] * len(request.instances))
        await self._bisect(Batch(members), members, cause)
        return caller.answer.result()

    def _sent_alone(self, request: PredictionRequest) -> BatchSent:
        """The same event again for the usual request, of one instance: this is the hot path."""
        if self._lone is None or len(request.instances) != 1:
            sent = BatchSent(request.model, len(request.instances), 1, 0.0)
            self._lone = sent if sent.instances == 1 else self._lone
            return sent
        return self._lone

    # --- a request that waits

    async def _wait(self, request: PredictionRequest, now: float) -> PredictionResult:
        costs = self._costs(request.instances)
        self._arrivals += 1
        caller = Caller.of(request, self._arrivals, now)
        queue = self._queues.get(caller.question)
        if queue is None:
            queue = self._queues[caller.question] = self._new_queue()
        for waiting in caller.waiting(costs):
            queue.add(waiting)
        self._start()
        try:
            return await caller.answer
        except BaseException:
            self._leave(caller)
            raise

    def _new_queue(self) -> BatchQueue[Caller]:
        if self._cost is None:
            return BatchQueue(self._max_size)
        return PaddedBatchQueue(self._max_size, self._max_cost)

    def _leave(self, caller: Caller) -> None:
        """Nothing more is done for `caller`, whose answer is cancelled or an error."""
        queue = self._queues.get(caller.question)
        if queue is not None:
            queue.remove(caller.deadline, caller.arrival)
            if not queue:
                del self._queues[caller.question]
        for sender, batch in self._senders.items():
            if batch is not None and batch.abandoned():
                self._senders[sender] = None
                sender.cancel()

    # --- sending batches

    def _start(self) -> None:
        """Give a free slot to those who wait: a task that sends one batch after the other.

        It cuts its batch in its first step, when whoever comes in the same turn of the loop is there too;
        then it starts the next if there is more. Its context is empty: it acts for no caller alone.
        """
        if not self._queues or self._starting is not None or not self._free():
            return
        self._in_flight += 1
        self._starting = asyncio.get_running_loop().create_task(self._send_all(), context=Context())
        self._senders[self._starting] = None
        self._starting.add_done_callback(self._ended)

    def _ended(self, sender: asyncio.Task[None]) -> None:
        """Take the slot back, also from a task that was cancelled before its first step."""
        batch = self._senders.pop(sender)
        if sender is self._starting:
            self._starting = None
        for member in batch.members if batch is not None else ():
            member.caller.answer.cancel()  # the inner predictor was cancelled, or the loop is being closed
        self._in_flight -= 1
        self._start()

    async def _send_all(self) -> None:
        """Send one batch after the other, each as soon as the one before lands and before its callers run."""
        sender, self._starting = self._starting, None
        assert sender is not None
        while self._in_flight == 1 or self._in_flight <= self._slots():
            members = self._cut()
            if not members:
                break
            batch = self._senders[sender] = Batch(members)
            self._start()
            await self._send(batch, members)
            self._senders[sender] = None

    def _cut(self) -> list[Waiting[Caller]]:
        """The batch that goes next; empty where nobody waits."""
        members: list[Waiting[Caller]] = []
        while self._queues and not members:
            question = self._next_question()
            queue = self._queues[question]
            for caller in give_way(queue, self._seconds.needed()):
                self._observe(Shed(caller.request.model, len(caller.request.instances), "late"))
            members = wanted(queue.take())
            if not queue:
                del self._queues[question]
        return members

    def _next_question(self) -> Hashable:
        if len(self._queues) == 1:
            return next(iter(self._queues))
        return min(self._queues, key=lambda question: self._queues[question].first)

    async def _send(self, batch: Batch, members: Sequence[Waiting[Caller]]) -> None:
        """One call for `members` of `batch`, and more where one of them may be guilty of its failure."""
        request = merged(members)
        begun = asyncio.get_running_loop().time()
        waited = begun - min(member.caller.since for member in members)
        self._observe(BatchSent(request.model, len(members), callers(members), waited))
        try:
            result = await self._inner(request)
            answered = list(zip(members, result.predictions, strict=True))
        except CONTENT as error:
            cause = error
        except Exception as error:  # noqa: BLE001  a bug's too: each who waits for it raises it
            fail_all(members, error)
            return
        else:
            self._seconds.learn(asyncio.get_running_loop().time() - begun)
            batch.answered = True
            for member, prediction in answered:
                member.caller.take(member.position, prediction, result.model, result.server_seconds)
            return
        await self._bisect(batch, members, cause)

    async def _bisect(self, batch: Batch, members: Sequence[Waiting[Caller]], error: DispatchError) -> None:
        """Find the guilty among `members`, who failed together with `error`."""
        if len(members) == 1 or (isinstance(error, ServerFault) and callers(members) == 1):
            batch.blame(members[0], error)
            return
        middle = len(members) // 2
        for half in (members[:middle], members[middle:]):
            if batch.broken():
                fail_all(half, error)
            elif rest := wanted(half):
                await self._send(batch, rest)
