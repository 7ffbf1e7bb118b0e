from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from application.asking import FAULTS, GROUP, GROUPS, UNKNOWN, Asking, outcome_line
from domain import errors
from domain.job import Failure, Job
from domain.prediction import ModelRef, PredictionResult, Refusal
from tests.virtual_time import now, virtual_time

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from application.asking import Outcome
    from domain.prediction import Json, PredictionRequest

JOB = Job("j", ModelRef("m"), 500, 500, 0.0, 60.0, 1000.0, parameters={"k": 1}, partition="p", bulk=True)


@dataclass
class Model:
    """Answers after `seconds`; raises `bad` for a request with that instance, and before that `script`."""

    bad: dict[Json, Exception] = field(default_factory=dict)
    script: Callable[[PredictionRequest], BaseException | None] = lambda _: None
    seconds: float = 0.25
    version: str | None = "1.0"
    asked: list[PredictionRequest] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def __call__(self, request: PredictionRequest) -> PredictionResult:
        self.asked.append(request)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        error = self.script(request) or next((self.bad[i] for i in request.instances if i in self.bad), None)
        if error is not None:
            raise error
        return PredictionResult(ModelRef("m", self.version), tuple(f"<{i}>" for i in request.instances))

    def sizes(self) -> list[int]:
        return [len(request.instances) for request in self.asked]


def until(time: float, error: BaseException) -> Callable[[PredictionRequest], BaseException | None]:
    return lambda _: error if now() < time else None


async def ask(model: Any, instances: Sequence[Json], chance: float = 1.0) -> list[Outcome]:
    return await Asking(
        JOB, model, chance=lambda: chance, answered=lambda: None, failed=lambda: None
    ).outcomes(instances)


def answers(instances: Sequence[Json]) -> list[Outcome]:
    return [f"<{i}>" for i in instances]


@virtual_time
async def test_the_model_is_asked_as_the_job_says() -> None:
    model = Model()
    asking = Asking(JOB, model, chance=lambda: 0.0, answered=lambda: None, failed=lambda: None)
    assert await asking.outcomes(["a", "b"]) == ["<a>", "<b>"]
    (request,) = model.asked
    assert (request.model, request.instances, request.parameters) == (JOB.model, ("a", "b"), {"k": 1})
    assert (request.partition, request.bulk, request.deadline) == ("p", True, None)
    assert asking.version == "1.0"


@virtual_time
async def test_an_answer_that_names_no_version_does_not_hide_the_one_before() -> None:
    model = Model()
    asking = Asking(JOB, model, chance=lambda: 0.0, answered=lambda: None, failed=lambda: None)
    await asking.outcomes(["a"])
    model.version = None
    await asking.outcomes(["a"])
    assert asking.version == "1.0"


@pytest.mark.parametrize("count", [1, GROUP, GROUP + 1, 500])
@virtual_time
async def test_outcomes_keep_the_order_of_their_instances_whoever_is_answered_first(count: int) -> None:
    model = Model()
    model.script = lambda _: setattr(model, "seconds", 1.0 / len(model.asked))
    assert await ask(model, range(count)) == answers(range(count))


@virtual_time
async def test_a_chunk_is_asked_about_in_groups_and_a_few_at_a_time() -> None:
    model = Model()
    await ask(model, range(500))
    assert Counter(model.sizes()) == {GROUP: 15, 20: 1}
    assert model.most_in_flight == GROUPS
    assert now() == 4 * model.seconds


GUILTY = [
    errors.InputRejectedByModel("no"),
    errors.InvalidRequest("no"),
    errors.PayloadTooLarge("no"),
    errors.ServerFault("no"),
    errors.ServerTimeout("no"),
    errors.InternalError("no"),
]


@pytest.mark.parametrize("error", GUILTY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("count", [1, 2, 32, 500])
@virtual_time
async def test_only_the_guilty_pays_for_what_it_brings_upon_its_neighbours(
    error: errors.DispatchError, count: int
) -> None:
    guilty = count * 2 // 3
    model = Model({guilty: error})
    expected = answers(range(count))
    expected[guilty] = Failure.of(error)

    assert await ask(model, range(count)) == expected
    assert len(model.asked) <= -(-count // GROUP) + 10 + FAULTS - 1


@virtual_time
async def test_the_guilty_of_32_is_found_in_11_calls_as_git_bisect_would() -> None:
    model = Model({7: errors.InputRejectedByModel("no")})
    await ask(model, range(32))
    assert model.sizes() == [32, 16, 8, 4, 4, 2, 2, 1, 1, 8, 16]


@virtual_time
async def test_all_may_be_guilty() -> None:
    bad: dict[Json, Exception] = {i: errors.InputRejectedByModel(f"not {i}") for i in range(40)}
    assert await ask(Model(bad), range(40)) == [
        Failure("input-rejected-by-model", f"not {i}", 422) for i in range(40)
    ]


@virtual_time
async def test_a_refusal_is_the_failure_of_its_instance_alone() -> None:
    async def predict(request: PredictionRequest) -> PredictionResult:
        return PredictionResult(request.model, ("yes", Refusal(415, "no picture"), "yes"))

    assert await ask(predict, "abc") == ["yes", Failure("input-rejected-by-model", "no picture", 415), "yes"]


@pytest.mark.parametrize("error", [errors.ServerFault("no"), errors.ServerTimeout("no"), ValueError("bug")])
@virtual_time
async def test_a_fault_is_believed_when_an_instance_alone_had_it_three_times(error: Exception) -> None:
    twice, thrice = Model(), Model({"a": error})
    twice.script = lambda _: error if len(twice.asked) < FAULTS else None

    assert await ask(twice, ["a"]) == ["<a>"]
    (failure,) = await ask(thrice, ["a"])
    assert isinstance(failure, Failure)
    assert len(twice.asked) == len(thrice.asked) == FAULTS


@virtual_time
async def test_the_detail_of_a_bug_stays_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    told = await ask(Model({3: ValueError("a bug")}), range(500))
    assert told[:4] == [*answers(range(3)), Failure.of(errors.InternalError())]
    assert told[4:] == answers(range(4, 500))
    assert {(record.name, record.levelname) for record in caplog.records} == {("dispatcher.jobs", "ERROR")}


PASSING = [
    errors.NoServerAvailable(),
    errors.Overloaded(),
    errors.DeadlineExceeded(),
    errors.ServerBusy(),
    errors.ServerUnreachable(),
    errors.QueueUnavailable(),
]


@pytest.mark.parametrize("error", PASSING, ids=lambda error: type(error).__name__)
@virtual_time
async def test_what_passes_is_waited_for(error: errors.DispatchError) -> None:
    model = Model(script=until(300.0, error))
    assert await ask(model, range(40)) == answers(range(40))
    assert 300.0 <= now() < 310.0
    assert len(model.asked) < 2 * 80


@pytest.mark.parametrize("chance", [0.0, 0.999])
@virtual_time
async def test_pauses_double_up_to_a_bound_and_are_spread(chance: float) -> None:
    times: list[float] = []

    def script(_: PredictionRequest) -> BaseException | None:
        times.append(now())
        return errors.NoServerAvailable() if now() < 60.0 else None

    await ask(Model(script=script, seconds=0.0), ["a"], chance)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    full = [0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * (len(pauses) - 5)]
    assert pauses == pytest.approx([pause * (0.5 + chance / 2) for pause in full])


@pytest.mark.parametrize("error", [errors.ModelNotFound("gone"), errors.VersionNotFound("gone")])
@virtual_time
async def test_a_model_may_be_unknown_for_a_minute_and_no_longer(error: errors.DispatchError) -> None:
    assert await ask(Model(script=until(UNKNOWN - 1.0, error)), ["a", "b"]) == ["<a>", "<b>"]
    began = now()
    assert await ask(Model(script=lambda _: error), ["a", "b"]) == [Failure.of(error)] * 2
    assert UNKNOWN < now() - began < UNKNOWN + 6.0


@virtual_time
async def test_that_minute_begins_when_its_server_is_there_and_does_not_know_it() -> None:
    def script(_: PredictionRequest) -> BaseException | None:
        if now() < 300.0:
            return errors.NoServerAvailable()
        return errors.ModelNotFound() if now() < 330.0 else None

    assert await ask(Model(script=script), ["a"]) == ["<a>"]


@virtual_time
async def test_a_server_that_comes_and_goes_is_not_a_model_that_is_gone() -> None:
    def script(_: PredictionRequest) -> BaseException | None:
        return (
            (errors.ModelNotFound(), errors.ServerUnreachable())[int(now() / 50) % 2] if now() < 400 else None
        )

    assert await ask(Model(script=script), ["a"]) == ["<a>"]


@virtual_time
async def test_an_error_of_no_other_kind_is_the_failure_of_its_group() -> None:
    error = errors.JobConflict("of no other kind")
    model = Model({3: error})
    assert await ask(model, range(40)) == [Failure.of(error)] * 32 + answers(range(32, 40))


@virtual_time
async def test_who_is_cancelled_asks_no_more() -> None:
    model = Model(seconds=1.0)
    asking = asyncio.create_task(ask(model, range(500)))
    await asyncio.sleep(1.5)
    asking.cancel()
    (told,) = await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(told, asyncio.CancelledError)
    assert (len(model.asked), model.in_flight) == (2 * GROUPS, 0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual_time
async def test_a_predictor_that_is_cancelled_from_inside_cancels_the_asking_and_is_no_answer() -> None:
    model = Model(script=lambda r: asyncio.CancelledError() if 40 in r.instances else None)
    with pytest.raises(asyncio.CancelledError):
        await ask(model, range(500))


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        ("a", {"prediction": "a"}),
        (None, {"prediction": None}),
        ({"é": [1.5, True]}, {"prediction": {"é": [1.5, True]}}),
        (Failure("k", "d"), {"error": {"kind": "k", "detail": "d", "code": None}}),
        (Failure("k", "two\nlines", 422), {"error": {"kind": "k", "detail": "two\nlines", "code": 422}}),
    ],
)
def test_an_outcome_is_a_line_of_json(outcome: Outcome, line: Json) -> None:
    assert json.loads(outcome_line(outcome)) == line
    assert outcome_line(outcome).endswith(b"\n")
    assert outcome_line(outcome).count(b"\n") == 1


@virtual_time
async def test_instances_that_are_late_together_are_asked_apart() -> None:
    model = Model(script=lambda request: errors.DeadlineExceeded() if len(request.instances) > 1 else None)
    assert await ask(model, ["a", "b", "c"]) == answers(["a", "b", "c"])
    assert model.sizes() == [3, 3, 1, 2, 2, 1, 1]


@virtual_time
async def test_one_that_is_late_alone_is_waited_for() -> None:
    model = Model(script=until(600.0, errors.DeadlineExceeded()))
    assert await ask(model, ["a"]) == answers(["a"])
