"""What the dispatcher needs of the outside, and the one port that everything inside is."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from domain.events import Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from domain.fleet import ServedModel
    from domain.job import Chunk, Job, JobStatus
    from domain.prediction import Json, PredictionRequest, PredictionResult
    from domain.webhook import Attempt


class Predictor(Protocol):
    """Answers a request with one prediction for each instance, in order, or raises a DispatchError.

    A server is a Predictor, a policy is a Predictor around a Predictor, the gateway is a Predictor
    (Eriksen, "Your Server as a Function", 2013).
    """

    async def __call__(self, request: PredictionRequest) -> PredictionResult: ...


class ServerProbe(Protocol):
    """Asks one server what it serves."""

    async def __call__(self) -> tuple[ServedModel, ...]:
        """Every version of every model. Raises ServerError where the server does not say."""
        ...


class Cached(NamedTuple):
    """A prediction that a cache remembers; `ttl` is how long it still does, in seconds."""

    prediction: Json
    ttl: float


class PredictionCache(Protocol):
    """Remembers predictions by fingerprint (fingerprint.fingerprints), for a while and within bounds.

    It may forget anything at any time, and never raises: what cannot be read is a miss, what cannot be
    written is not remembered.
    """

    async def get(self, fingerprints: Sequence[bytes]) -> Sequence[Cached | None]:
        """What is remembered for each, in order; None is a miss."""
        ...

    async def put(self, predictions: Mapping[bytes, Json], ttl: float) -> bool:
        """Remember `predictions` for `ttl` seconds; whether all of them were."""
        ...


class Memory(Protocol):
    """A PredictionCache that can say at once what it remembers."""

    def peek(self, fingerprints: Sequence[bytes]) -> Sequence[Cached | None]:
        """As PredictionCache.get."""
        ...


class Leases(Protocol):
    """Who, of several processes, does a piece of work that many want: whoever takes its lease first.

    A lease ends when it is given back, or by itself when its holder has not done so in time.
    Never raises: where the others cannot be asked, everything is granted.
    """

    async def take(self, fingerprints: Sequence[bytes]) -> frozenset[bytes]:
        """Those of `fingerprints` that nobody held; they are the caller's to do now, and to give back."""
        ...

    async def give_back(self, fingerprints: Sequence[bytes]) -> None:
        """End leases that `take` granted, and wake who waits for them."""
        ...

    async def wait(self, fingerprints: Sequence[bytes]) -> None:
        """Return when any of `fingerprints` may be free: given back, ended, or after a short while anyway."""
        ...


class IdempotencyKey(NamedTuple):
    """A caller's name for a submission (`Idempotency-Key`), and the fingerprint of what it submits."""

    partition: str
    key: str
    fingerprint: str


class NewJob(NamedTuple):
    """A job to be recorded; `instances` is its only chunk, None where put_instances has put them all."""

    job: Job
    instances: bytes | None = None
    idempotency: IdempotencyKey | None = None


class Created(NamedTuple):
    """The job that is recorded: the new one, or the one that its idempotency key has named already.

    `fingerprint` is that of the submission it was made for.
    """

    id: str
    fingerprint: str | None = None


class Change(NamedTuple):
    """A record as it is to be, in place of the one with the revision before.

    `outcomes` are those of the chunk with that index, where it is finished by this change.
    """

    job: Job
    chunk: int = 0
    outcomes: bytes | None = None


class Search(NamedTuple):
    """For up to `limit` jobs, the newest first, of this status and model; None: of any.

    `before` is the `next` of the page before; None begins with the newest of all.
    """

    limit: int
    before: int | None = None
    status: JobStatus | None = None
    model: str | None = None


class Page(NamedTuple):
    """Some jobs, the newest first; `next` leads on to the older ones, None where there are none."""

    jobs: Sequence[Job]
    next: int | None


class Backlog(NamedTuple):
    """How many jobs of one kind wait, and when the first of them was accepted (Unix time)."""

    jobs: int
    oldest: float | None


class JobStore(Protocol):
    """Records jobs, durably: what has returned is there after any process was killed.

    Methods take and give many at once, in order; what they take is done for each as a whole or not at all.
    Instances and outcomes of a chunk are bytes that the store does not look into.
    All raise QueueUnavailable, in bounded time, where that cannot be done now.
    """

    async def create(self, jobs: Sequence[NewJob]) -> Sequence[Created]:
        """Record new jobs, unless their idempotency keys have been used within their retention."""
        ...

    async def put_instances(self, chunks: Sequence[tuple[Chunk, bytes]]) -> None:
        """Put chunks of a job that is created afterwards; if it is not, they are forgotten within a day."""
        ...

    async def load(self, ids: Sequence[str]) -> Sequence[Job | None]:
        """The records; None where there is none."""
        ...

    async def instances(self, chunks: Sequence[Chunk]) -> Sequence[bytes | None]: ...

    async def outcomes(self, chunks: Sequence[Chunk]) -> Sequence[bytes | None]: ...

    async def save(self, changes: Sequence[Change]) -> Sequence[bool]:
        """Compare and set: whether each was done, as its record had the revision before."""
        ...

    async def page(self, search: Search) -> Page:
        """What `search` finds; with a `next` it may be short, or even empty."""
        ...

    async def position(self, job: Job) -> int | None:
        """How many queued jobs of its kind were accepted before it; None where it is not queued."""
        ...

    async def backlog(self, *, bulk: bool) -> Backlog:
        """The queued jobs of one kind."""
        ...

    async def due(self, now: float, limit: int) -> Sequence[str]:
        """Ids of jobs whose Job.due() has come, the longest due first."""
        ...

    async def delete(self, ids: Sequence[str]) -> None:
        """Forget jobs, with all that belongs to them."""
        ...

    def listen(self, heard: Callable[[Sequence[str] | None], None]) -> None:
        """Call `heard` with the ids of records that have changed, here or elsewhere; None: any may have.

        A hint, no more: some may be lost, and `heard(None)` follows as soon as that can be known.
        """
        ...


class JobQueue(Protocol):
    """Carries the names of chunks to whoever works them: at least once, and never their contents."""

    async def publish(self, chunks: Sequence[Chunk], *, bulk: bool) -> None:
        """Queue `chunks`; durably, once this returns.

        Raises QueueUnavailable, in bounded time, where that could not be done, or may not have been.
        """
        ...

    async def is_empty(self, *, bulk: bool) -> bool | None:
        """Whether nothing waits to be delivered; None where that cannot be known."""
        ...


class Condition(NamedTuple):
    """How a component is: `problem` says why it cannot be used, in words for callers; None where it can.

    `counts` is how much waits in it, by kind; empty where it does not say.
    """

    problem: str | None = None
    counts: Mapping[str, int] = MappingProxyType({})


class Component(Protocol):
    """Something beside the model servers that the gateway leans on."""

    async def condition(self) -> Condition:
        """How it is now. Never raises; it may take as long as anything else that it is asked."""
        ...


class WebhookSender(Protocol):
    """Calls webhooks."""

    async def __call__(self, url: str, message_id: str, body: bytes, now: float) -> Attempt:
        """Send `body`, signed, to `url`; never raises: what went wrong is in the Attempt."""
        ...


Observer: TypeAlias = Callable[[Event], None]
