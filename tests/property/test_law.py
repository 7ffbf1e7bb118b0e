"""The law: policies change when and how often a model is asked, never what it answers.

Whoever comes when, whichever policies are chosen and whatever goes wrong: an answer is the bare model's,
an error is one that the caller has earned or a server has made, and afterwards nothing is left.
"""

from __future__ import annotations

import asyncio
import gc
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from application.batch import BROKEN
from application.prediction_service import LOOK_AGAIN
from application.server import Server
from bootstrap import pipeline
from bootstrap.gateway import Models, assemble
from bootstrap.settings import (
    AdmissionSettings,
    BatchingSettings,
    CachingSettings,
    ModelSettings,
    RedisSettings,
    Settings,
)
from domain import errors
from domain.fleet import ServedModel
from domain.prediction import (
    ANY_SERVER,
    CacheControl,
    ModelRef,
    PredictionRequest,
    PredictionResult,
    Refusal,
    ServerAddress,
)
from infrastructure.memory_cache import ENTRY_BYTES, MemoryCache
from tests.fakes import FakeCache, FakeLeases
from tests.virtual_time import VirtualLoop, now

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from application.prediction_service import PredictionService
    from domain.prediction import Json, Prediction

REJECTED, REFUSED, FAULTY = "fails all, as refused", "is refused in its place", "fails all, as a fault"
ALIKE: list[Json] = [1, 1.0, True, "1", None, {"a": [1], "b": None}, {"b": None, "a": [1]}]
HANGS = 3600.0  # seconds
AT_ONCE = (0.0, None)
WATCH = 1.0  # seconds between two looks at the servers
LATE = 0.01 + 1e-6  # seconds: Cutoffs are so exact


def bare(model: ModelRef, parameters: Mapping[str, Json], instance: Json) -> str:
    """What the model answers: signed with all that it may depend on."""
    return json.dumps([model.name, model.version, parameters, instance], sort_keys=True)


def answer(request: PredictionRequest, instance: Json) -> Prediction:
    return Refusal(422, REFUSED) if instance == REFUSED else bare(request.model, request.parameters, instance)


@dataclass(frozen=True)
class Release:
    """When version 2 of both models is there, when it is the default, and when version 1 is withdrawn."""

    served_from: float
    default_after: float
    withdrawn_after: float

    @property
    def default_from(self) -> float:
        return self.served_from + self.default_after

    @property
    def withdrawn_from(self) -> float:
        return self.default_from + self.withdrawn_after

    def served(self) -> tuple[ServedModel, ...]:
        is_default = now() >= self.default_from
        versions = ["1"] * (now() < self.withdrawn_from) + ["2"] * (now() >= self.served_from)
        return tuple(ServedModel(m, v, default=(v == "2") is is_default) for m in "mn" for v in versions)

    def may_answer(self, caller: Caller, at: float) -> set[str]:
        """The versions that `caller` may have heard from `at` then.

        Servers are looked at every now and then, and another version stands for one that is withdrawn.
        """
        if caller.version is not None:
            return {caller.version}
        heard = {"1"} if caller.arrives <= self.default_from + WATCH else set()
        new = caller.arrives >= self.default_from or at >= self.withdrawn_from
        return heard | {"2"} if new else heard


@dataclass(frozen=True)
class Caller:
    """Comes at `arrives`, waits for `patience` at most, and perhaps loses interest; in seconds."""

    arrives: float
    process: int
    model: str
    version: str | None
    instances: tuple[Json, ...]
    parameters: dict[str, Json]
    server: ServerAddress
    patience: float | None
    partition: str
    cache: CacheControl
    bulk: bool
    leaves_after: float | None
    way: str

    def request(self) -> PredictionRequest:
        return PredictionRequest(
            ModelRef(self.model, self.version),
            self.instances,
            self.parameters,
            self.server,
            None if self.patience is None else self.arrives + self.patience,
            self.partition,
            self.cache,
            self.bulk,
        )

    def unwelcome(self) -> set[str]:
        """Pointers to what the model does not take."""
        return {f"/instances/{i}" for i, each in enumerate(self.instances) if each in (REJECTED, REFUSED)}


@dataclass
class FlakyServer:
    """Answers as the model does, or fails; `script` says, in turns, after how long and how."""

    release: Release
    script: Sequence[tuple[float, type[errors.ServerError] | None]]
    asked: int = 0
    in_flight: int = 0
    faults: int = 0

    async def predict(self, request: PredictionRequest) -> PredictionResult:
        seconds, error = self.script[self.asked % len(self.script)]
        self.asked += 1
        self.in_flight += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self.in_flight -= 1
        if error is not None:
            self.faults += error is errors.ServerFault
            raise error
        if request.model not in {ModelRef(each.name, each.version) for each in self.release.served()}:
            raise errors.VersionNotFound
        if FAULTY in request.instances:
            raise errors.ServerFault(FAULTY)
        if REJECTED in request.instances:
            raise errors.InputRejectedByModel
        return PredictionResult(request.model, tuple(answer(request, each) for each in request.instances))

    async def probe(self) -> tuple[ServedModel, ...]:
        await asyncio.sleep(0)
        return self.release.served()


@dataclass(frozen=True)
class World:
    """Two gateway processes with one configuration in front of the same servers; at `closes` all leave.

    Each remembers as many small answers as it has `room` for; None: they share a cache that has no bound.
    """

    models: dict[str, ModelSettings]
    room: int | None
    release: Release
    servers: list[FlakyServer]
    closes: float

    def gateways(self) -> list[Models]:
        cache, leases = FakeCache(), FakeLeases()
        redis = RedisSettings(url="redis://fake") if self.room is None else None
        chosen = Settings(models=self.models, redis=redis)
        return [
            assemble(
                chosen,
                [Server(str(i), "h", 8080 + i, s.predict, s.probe) for i, s in enumerate(self.servers)],
                cache if self.room is None else MemoryCache(self.room * ENTRY_BYTES, now),
                FakeLeases(leases.held, ttl=2.0) if self.room is None else None,
            )
            for _ in range(2)
        ]

    def may_fail(self, caller: Caller, callers: Sequence[Caller]) -> set[type[errors.DispatchError]]:
        """The errors that `caller` may hear; of deadlines, rejections and faults `check` knows more."""
        scripted = {error for server in self.servers for _, error in server.script if error is not None}
        late = caller.version == "2" and caller.arrives <= self.release.served_from + LOOK_AGAIN
        gone = caller.version == "1" and self.deadline(caller) >= self.release.withdrawn_from
        sent_together = sum(FAULTY in each.instances for each in callers)
        blameless = sent_together + sum(server.faults for server in self.servers) < BROKEN
        faulty = FAULTY in caller.instances or not blameless
        chosen = self.models[caller.model]
        slow = any(seconds > 0 for server in self.servers for seconds, _ in server.script)
        return (
            scripted
            | ({errors.NoServerAvailable} if errors.ServerUnreachable in scripted else set())
            | ({errors.VersionNotFound} if late or gone else set())
            | ({errors.NoServerAvailable} if gone else set())
            | ({errors.Overloaded} if chosen.admission or chosen.batching else set())
            | ({errors.InputRejectedByModel} if caller.unwelcome() else set())
            | ({errors.ServerFault} if faulty else set())
            | ({errors.DeadlineExceeded, errors.ServerTimeout} if slow else set())
        )

    def deadline(self, caller: Caller) -> float:
        return caller.arrives + (caller.patience or self.models[caller.model].timeout)

    def asked_anew(self, caller: Caller) -> float:
        """How much longer it may take, in seconds: the model's own timeout is one for each version asked."""
        of_the_model = caller.version is None and caller.patience is None
        withdrawn = self.deadline(caller) >= self.release.withdrawn_from
        return self.models[caller.model].timeout if of_the_model and withdrawn else 0.0


async def ask(gateway: PredictionService, caller: Caller) -> PredictionResult:
    """As a job does, as `/dispatch_model`, which looks into memory first, or as `/api/predict/`."""
    request = caller.request()
    if caller.way == "job":
        return await gateway.predict(request)
    known = gateway.recall(request)
    if isinstance(known, PredictionResult):
        return known
    if caller.way == "text" and caller.server == ANY_SERVER:
        return await gateway.remembered(known) or await gateway.predict(known)
    return await gateway.predict(known)


async def live(
    caller: Caller, gateways: Sequence[Models], closes: float
) -> tuple[PredictionResult | BaseException, float]:
    """What `caller` was told, and when."""
    await asyncio.sleep(caller.arrives)
    asking = asyncio.ensure_future(ask(gateways[caller.process].predictions, caller))
    leaves = closes if caller.leaves_after is None else min(closes, caller.arrives + caller.leaves_after)
    asyncio.get_running_loop().call_at(leaves, asking.cancel)
    (told,) = await asyncio.gather(asking, return_exceptions=True)
    return told, now()


def check(world: World, callers: Sequence[Caller], caller: Caller, told: object, at: float) -> None:
    deadline = world.deadline(caller)
    assert at <= deadline + world.asked_anew(caller) + LATE
    if isinstance(told, PredictionResult):
        assert told.model.version in world.release.may_answer(caller, at)
        assert not caller.unwelcome()
        assert told.predictions == tuple(bare(told.model, caller.parameters, i) for i in caller.instances)
        assert told.model.name == caller.model
        assert caller.cache.read or told.cache is None or told.cache.hits == 0
    elif isinstance(told, asyncio.CancelledError):
        assert caller.leaves_after is not None or at >= world.closes - 1e-6
    else:
        assert type(told) in world.may_fail(caller, callers), repr(told)
        assert not isinstance(told, errors.DeadlineExceeded) or at >= deadline - 1e-6
        if isinstance(told, errors.InputRejectedByModel) and told.errors:
            assert {each.pointer for each in told.errors} == caller.unwelcome()


def left_over(gateways: Sequence[Models]) -> Iterator[object]:
    """Whatever is still in the hands of a server or a policy; no public sign says so of all."""
    for gateway in gateways:
        yield from (server.load.in_flight for server in gateway.fleet.servers)
        for pipe in gateway.predictions._pipelines.values():
            policy: object = pipe
            while policy := getattr(policy, "_inner", None):
                kept = ("in_flight", "waiting", "_in_flight", "_flights", "_queues", "_senders")
                yield from (getattr(policy, name, None) for name in kept)


async def run(world: World, callers: Sequence[Caller]) -> None:
    gateways = world.gateways()
    watching = [asyncio.create_task(each.fleet.watch(WATCH, WATCH / 2)) for each in gateways]
    async with asyncio.timeout(60.0):
        heard = await asyncio.gather(*(live(caller, gateways, world.closes) for caller in callers))
    for each in watching:
        each.cancel()
    await asyncio.wait(watching)
    await asyncio.sleep(0.001)
    for caller, (told, at) in zip(callers, heard, strict=True):
        check(world, callers, caller, told, at)
    assert not any(left_over(gateways))
    assert not any(server.in_flight for server in world.servers)
    assert asyncio.all_tasks() == {asyncio.current_task()}


def mostly(usual: Any, *others: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 9 * len(others) + [*others])


def quarters(most: int) -> st.SearchStrategy[float]:
    return st.integers(0, 4 * most).map(lambda quarter: quarter / 4)


tries = st.tuples(
    st.sampled_from([0.0, 0.25, 0.5, 1.0]) | mostly(0.25, HANGS),
    mostly(None, *errors.ServerError.__subclasses__()),
)
scripts = st.lists(st.lists(tries, min_size=1, max_size=4), min_size=1, max_size=3)
callers = st.builds(
    Caller,
    arrives=quarters(3),
    process=st.sampled_from([0, 0, 1]),
    model=st.sampled_from("mmmn"),
    version=mostly(None, "1", "2"),
    instances=st.lists(st.sampled_from([*ALIKE * 6, REJECTED, REFUSED, FAULTY]), min_size=1, max_size=3).map(
        tuple
    ),
    parameters=mostly({}, {"k": 1}, {"k": True}),
    server=mostly(ANY_SERVER, ServerAddress(port=8080)),
    patience=mostly(None, 0.25, 1.0, 3.0),
    partition=mostly("", "p"),
    cache=st.builds(
        CacheControl,
        read=st.sampled_from([True, True, True, False]),
        store=st.sampled_from([True, True, True, False]),
    ),
    bulk=st.sampled_from([False, False, False, True]),
    leaves_after=mostly(None, 0.0, 0.25, 1.0),
    way=st.sampled_from(["job", "dispatch", "text"]),
)
models = st.builds(
    ModelSettings,
    deterministic=st.sampled_from([True, True, True, False]),
    caching=st.sampled_from([None, CachingSettings(ttl=0.5), *[CachingSettings(ttl=3.0)] * 3]),
    coalescing=st.sampled_from([True, True, False]),
    admission=st.none()
    | st.builds(AdmissionSettings, max_in_flight=st.integers(1, 6), max_waiting=st.sampled_from([0, 1, 8])),
    batching=st.none()
    | st.builds(
        BatchingSettings,
        max_size=st.integers(1, 6),
        max_cost=st.none() | st.integers(1, 60),
        per_worker=st.integers(1, 2),
    ),
    timeout=st.sampled_from([2.0, 6.0]),
    attempt_timeout=st.sampled_from([0.75, 3.0]),
    payload=mostly("instances", "body"),
)


@pytest.fixture(autouse=True, scope="module")
def _nothing_but_virtual_time() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPATCHER_CONFIG", "no such file: the test says all there is")
        patch.setattr(pipeline, "time", SimpleNamespace(monotonic=now))
        yield


@given(
    callers=st.lists(callers, min_size=10, max_size=30),
    models=st.fixed_dictionaries({"m": models, "n": models}),
    room=st.sampled_from([None, None, 3, 30]),
    closes=st.sampled_from([HANGS, HANGS, HANGS, 1.0]),
    release=st.builds(
        Release,
        served_from=quarters(2),
        default_after=quarters(1),
        withdrawn_after=st.just(HANGS) | quarters(1),
    ),
    scripts=st.one_of(scripts, scripts, scripts, st.just([[AT_ONCE]])),
)
def test_policies_change_when_and_how_often_a_model_is_asked_never_what_it_answers(
    callers: list[Caller],
    models: dict[str, ModelSettings],
    room: int | None,
    closes: float,
    release: Release,
    scripts: list[list[tuple[float, type[errors.ServerError] | None]]],
) -> None:
    world = World(models, room, release, [FlakyServer(release, script) for script in scripts], closes)
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
        runner.run(run(world, callers))
    gc.collect(1)
    assert complaints == []
