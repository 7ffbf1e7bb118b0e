"""The law of jobs: what was accepted ends once, as the bare model would have it, whatever breaks on the way.

Messages are lost, doubled and turned around, workers die, the store and the queue refuse or lose their
answers, the model fails: an accepted job ends in one way, its outcomes are the bare model's, and nothing
changes them any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from application import asking, job_runner, job_service
from application.housekeeping import Housekeeping
from application.job_records import JobRecords
from application.job_runner import JobRunner
from application.job_service import JobService, Submission, encode
from domain import errors
from domain.job import Job, JobStatus
from domain.ports import IdempotencyKey
from domain.prediction import ModelRef, PredictionResult, Refusal
from tests.fakes_jobs import FakeJobQueue, FakeJobStore, Trouble
from tests.virtual_time import VirtualLoop, now

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from domain.job import Chunk
    from domain.ports import Change
    from domain.prediction import Json, Prediction, PredictionRequest
    from domain.webhook import Attempt

EPOCH = 1_700_000_000.0
SMALL = 2  # instances in a chunk, and in a group of it
LONG, SHORT = 86_400.0, 5.0  # seconds that a job has
PATIENT = 3600.0  # seconds in which all has to be over
REFUSED, REJECTED, FAULTY, BUG = "is refused in its place", "is rejected", "is a fault", "is a bug"
RAISES = {
    REJECTED: errors.InputRejectedByModel("rejected"),
    FAULTY: errors.ServerFault("fault"),
    BUG: ValueError("bug"),
}
FINE, DOWN, LOST = "fine", "down", "does it, but the answer is lost"
PASSING = [errors.NoServerAvailable, errors.ServerUnreachable, errors.DeadlineExceeded, errors.ModelNotFound]
FAULTS = [errors.ServerFault, errors.ServerTimeout, ValueError]


def clock() -> float:
    return EPOCH + now()


def bare(instance: Json) -> Json:
    """The outcome that the model alone decides."""
    fault = {FAULTY: ("server-fault", "fault"), BUG: ("internal-error", str(errors.InternalError()))}
    if instance in {REFUSED, REJECTED}:
        detail = {REFUSED: "refused", REJECTED: "rejected"}[str(instance)]
        return {"error": {"kind": "input-rejected-by-model", "detail": detail, "code": 422}}
    if instance in fault:
        kind, detail = fault[str(instance)]
        return {"error": {"kind": kind, "detail": detail, "code": None}}
    return {"prediction": f"<{instance}>"}


def agree(outcome: Any, wanted: Any) -> bool:
    """Whether the model has its way; what it fails at may have failed for the last time by a flake."""
    if outcome == wanted:
        return True
    faults = {"server-fault", "server-timeout", "internal-error"}
    return {each.get("error", {}).get("kind") for each in (outcome, wanted)} <= faults


@dataclass(frozen=True)
class Caller:
    """Submits a job; perhaps waits for it, cancels it, comes again with its key, or dies, in seconds."""

    arrives: float
    instances: tuple[str, ...]
    key: str | None
    waits: float | None
    cancels_after: float | None
    dies_after: float | None
    timeout: float
    bulk: bool

    def submission(self) -> Submission:
        key = self.key and IdempotencyKey("p", self.key, repr(self.instances))
        return Submission(ModelRef("m"), self.timeout, LONG, bulk=self.bulk, idempotency=key or None)


@dataclass(frozen=True)
class Fate:
    """Of a delivery: it is lost, comes once more, has its chunks turned around, kills who works it."""

    lost: bool = False
    again_after: float | None = None
    backwards: bool = False
    dies_after: float | None = None


@dataclass
class Shaky(Trouble):
    """What each call meets; those that come after all these are fine."""

    script: Iterator[str] = field(default_factory=lambda: iter(()))
    met: str = FINE

    async def before(self) -> None:
        await super().before()
        self.met = next(self.script, FINE)
        if self.met == DOWN:
            raise errors.QueueUnavailable

    def after(self) -> None:
        if self.met == LOST:
            raise errors.QueueUnavailable


class Ledger(FakeJobStore):
    """A store that sees to it that an end is an end, and that what has finished stays."""

    def _save(self, change: Change) -> bool:
        before, result = self.jobs.get(change.job.id), self.results.copy()
        saved = super()._save(change)
        if saved and before is not None:
            assert not before.over
            assert before.finished & change.job.finished == before.finished
            finished = [chunk for chunk in result if chunk.job == before.id]
            assert all(self.results[chunk] == result[chunk] for chunk in finished)
        return saved


@dataclass
class Model:
    """Takes its time and fails as `script` says, call by call."""

    script: Iterator[tuple[float, type[Exception] | None]]
    faults: int = 0

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        seconds, error = next(self.script, (0.0, None))
        await asyncio.sleep(seconds)
        if error in FAULTS:
            self.faults += 1
        if error is not None and self.faults < asking.FAULTS:
            raise error
        for instance in request.instances:
            if instance in RAISES:
                raise RAISES[str(instance)]
        return PredictionResult(ModelRef("m", "1"), tuple(map(self._answer, request.instances)))

    @staticmethod
    def _answer(instance: Json) -> Prediction:
        return Refusal(422, "refused") if instance == REFUSED else f"<{instance}>"


@dataclass
class World:
    """Two processes that accept jobs and two that work them, with all between them."""

    store: Ledger
    queue: FakeJobQueue
    model: Model
    fates: Iterator[Fate]
    accepted: list[tuple[Caller, str]] = field(default_factory=list)
    told: list[tuple[Job, bytes | None]] = field(default_factory=list)
    deliveries: list[asyncio.Task[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.records = [JobRecords(self.store) for _ in range(4)]
        self.services = [
            JobService(each, self.queue, clock=clock, check=serves_all) for each in self.records[:2]
        ]
        self.runners = [
            JobRunner(each, self.queue, self.model, clock=clock, chance=lambda: 0.5)
            for each in self.records[2:]
        ]

    async def live(self, caller: Caller, jobs: JobService) -> None:
        await asyncio.sleep(caller.arrives)
        submitting = asyncio.create_task(self.submit(caller, jobs))
        if caller.dies_after is not None:
            asyncio.get_running_loop().call_later(caller.dies_after, submitting.cancel)
        await asyncio.wait([submitting])
        if submitting.cancelled():
            return
        if submitting.exception() is not None:
            mistaken = caller.key is not None and isinstance(submitting.exception(), errors.InvalidRequest)
            assert mistaken or isinstance(submitting.exception(), errors.QueueUnavailable)
            return
        self.accepted.append((caller, submitting.result()))
        if caller.cancels_after is not None:
            await asyncio.sleep(caller.cancels_after)
            with contextlib.suppress(errors.JobConflict, errors.QueueUnavailable):
                await jobs.cancel(submitting.result())

    async def submit(self, caller: Caller, jobs: JobService) -> str:
        submission = caller.submission()
        if len(caller.instances) > SMALL:
            return (await jobs.submit_chunks(submission, pieces(caller.instances))).id
        if caller.waits is None:
            return (await jobs.submit(submission, caller.instances)).id
        told = await jobs.submit_and_wait(submission, caller.instances, now() + caller.waits)
        self.told.append(told)
        return told[0].id

    async def deliver(self) -> None:
        """What a broker does: every message once at least, unless `fates` says otherwise."""
        while True:
            for bulk in (False, True):
                chunks = self.queue.deliver(bulk=bulk)
                fate = next(self.fates, Fate()) if chunks else Fate(lost=True)
                if not fate.lost:
                    chunks = chunks[::-1] if fate.backwards else chunks
                    self.deliveries.append(asyncio.create_task(self.hand_over(chunks, 0, fate.dies_after)))
                if not fate.lost and fate.again_after is not None:
                    self.deliveries.append(asyncio.create_task(self.hand_over(chunks, fate.again_after)))
            await asyncio.sleep(0.25)

    async def hand_over(self, chunks: Sequence[Chunk], after: float, dies_after: float | None = None) -> None:
        """Until somebody has worked them."""
        for runner in self.runners * 100:
            await asyncio.sleep(after)
            working = asyncio.create_task(runner.run(chunks))
            if dies_after is not None:
                asyncio.get_running_loop().call_later(dies_after, working.cancel)
            await asyncio.wait([working])
            if not working.cancelled() and working.exception() is None:
                return
            assert working.cancelled() or isinstance(working.exception(), errors.QueueUnavailable)
            after, dies_after = 1.0, None

    async def keep_house(self) -> None:
        keeper = Housekeeping(self.records[0], self.queue, no_webhook, clock=clock, chance=lambda: 0.0)
        while True:
            with contextlib.suppress(errors.QueueUnavailable):
                await keeper.tidy()
                await keeper.search(queued=10.0, running=60.0)
            await asyncio.sleep(5.0)

    def settled(self) -> bool:
        return all(job.over for job in self.store.jobs.values())


async def serves_all(_: ModelRef) -> None: ...


async def no_webhook(url: str, message_id: str, body: bytes, now: float) -> Attempt:
    raise NotImplementedError


async def pieces(instances: Sequence[Json]) -> AsyncIterator[tuple[int, bytes]]:
    for start in range(0, len(instances), SMALL):
        piece = instances[start : start + SMALL]
        yield len(piece), encode(piece)


async def run(world: World, callers: Sequence[Caller]) -> None:
    services = [asyncio.create_task(each) for each in (world.deliver(), world.keep_house())]
    await asyncio.gather(*(world.live(each, world.services[i % 2]) for i, each in enumerate(callers)))
    async with asyncio.timeout(PATIENT):
        while not world.settled():  # noqa: ASYNC110  # nobody tells when that is
            await asyncio.sleep(1.0)
        await asyncio.gather(*world.deliveries)
    for service in services:
        service.cancel()
    await asyncio.wait(services)
    await asyncio.gather(*(each.aclose() for each in world.records))
    world.store.trouble = Trouble()  # whoever looks now is not met by what the script has left
    await check(world)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not any(each._watch._waiting for each in world.services)


async def check(world: World) -> None:
    for caller, job_id in world.accepted:
        job = world.store.jobs[job_id]
        mates = [each for each, other in world.accepted if other == job_id]
        assert {each.instances for each in mates} == {caller.instances}
        lines = await outcomes(world, job)
        assert len(lines) == job.total == len(caller.instances)
        expected = [*map(bare, caller.instances)]
        if job.status in {JobStatus.SUCCEEDED, JobStatus.FAILED}:
            assert all(map(agree, lines, expected))
            answered = sum("prediction" in str(each)[:14] for each in expected)
            assert (job.done, job.failed) == (answered, job.total - answered)
            assert job.status is (JobStatus.SUCCEEDED if answered else JobStatus.FAILED)
        else:
            assert job.status is not JobStatus.CANCELED or any(e.cancels_after is not None for e in mates)
            assert job.status is not JobStatus.EXPIRED or any(e.timeout == SHORT for e in mates)
            assert all(
                line == not_asked(job) or agree(line, want)
                for line, want in zip(lines, expected, strict=True)
            )
    keys = {(each.key, job_id) for each, job_id in world.accepted if each.key is not None}
    assert max(Counter(key for key, _ in keys).values(), default=1) == 1
    for job, told in world.told:
        if job.over and told is not None:
            assert b"".join([each async for each in world.services[0].outcomes(job.id)]) == told


def not_asked(job: Job) -> Json:
    detail = f"The job was {job.status} before this instance was asked."
    return {"error": {"kind": "job-conflict", "detail": detail, "code": None}}


async def outcomes(world: World, job: Job) -> list[Json]:
    told = [line async for piece in world.services[1].outcomes(job.id) for line in piece.splitlines()]
    return [json.loads(line) for line in told]


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 4 * len(others) + [*others])


def quarters(most: int) -> st.SearchStrategy[float]:
    return st.integers(0, 4 * most).map(lambda quarter: quarter / 4)


callers = st.builds(
    Caller,
    arrives=quarters(3),
    instances=st.lists(mostly("a", "b", REFUSED, REJECTED, FAULTY, BUG), min_size=1, max_size=6).map(tuple),
    key=st.sampled_from([None, None, "k", "l"]),
    waits=st.none() | st.sampled_from([0.25, 100.0]),
    cancels_after=st.sampled_from([None] * 6 + [0.0, 1.0]),
    dies_after=st.sampled_from([None] * 6 + [0.0, 0.5, 1.0]),
    timeout=st.sampled_from([LONG] * 6 + [SHORT]),
    bulk=st.booleans(),
)
fates = st.builds(
    Fate,
    lost=st.sampled_from([False, False, True]),
    again_after=st.none() | quarters(4),
    backwards=st.booleans(),
    dies_after=st.none() | quarters(4),
)
troubles = st.lists(mostly(FINE, DOWN, LOST), max_size=40)
tries = st.tuples(st.sampled_from([0.0, 0.25, 1.0]), mostly(None, *PASSING, *FAULTS))


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job_service, "CHUNK", SMALL)
        patch.setattr(asking, "GROUP", SMALL)
        patch.setattr(asking.LOGGER, "disabled", True)  # tracebacks take their time
        patch.setattr(job_runner, "MOST_ATTEMPTS", 1000)  # nobody is poison here: it is the workers who die
        yield


@given(
    callers=st.lists(callers, min_size=1, max_size=6),
    fates=st.lists(fates, max_size=8),
    store=troubles,
    queue=troubles,
    model=st.lists(tries, max_size=8),
    slow=st.sampled_from([0.0, 0.25]),
)
def test_what_was_accepted_ends_once_as_the_bare_model_would_have_it(
    callers: list[Caller],
    fates: list[Fate],
    store: list[str],
    queue: list[str],
    model: list[tuple[float, type[Exception] | None]],
    slow: float,
) -> None:
    world = World(
        Ledger(Shaky(slow, script=iter(store))),
        FakeJobQueue(Shaky(slow, script=iter(queue))),
        Model(iter(model)),
        iter(fates),
    )
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
        runner.run(run(world, callers))
    gc.collect(1)
    assert complaints == []
