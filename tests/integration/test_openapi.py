"""The OpenAPI document and the gateway agree: schemathesis throws at one what it makes of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import positive_data_acceptance

from interface.main import create_app

if TYPE_CHECKING:
    from tests.integration.processes import RunningGateway

# Only the documents agree by themselves; what the routes do is asked of the running gateway.
DOCUMENT = schemathesis.openapi.from_dict(create_app().openapi())
OPERATIONS: list[Any] = [operation for path in DOCUMENT.values() for operation in path.values()]
DISPATCH_MODEL = next(operation for operation in OPERATIONS if operation.path == "/dispatch_model")

SUBMIT = next(each for each in OPERATIONS if (each.method.upper(), each.path) == ("POST", "/jobs"))
PREDICT = next(operation for operation in OPERATIONS if operation.path == "/api/predict/")
JOBS = next(each for each in OPERATIONS if (each.method.upper(), each.path) == ("GET", "/jobs"))


@schemathesis.serializer("application/x-ndjson")
def lines(_context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


load_all_checks()
# positive_data_acceptance is left out below: which host, port and instances are good, no schema can say.
patient = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    ("operation", "mode", "examples"),
    [
        *((operation, GenerationMode.POSITIVE, 10) for operation in OPERATIONS),
        (DISPATCH_MODEL, GenerationMode.POSITIVE, 50),
        # The other routes take nothing that could be wrong.
        *((each, GenerationMode.NEGATIVE, 50) for each in (DISPATCH_MODEL, PREDICT, SUBMIT, JOBS)),
    ],
    ids=str,
)
def test_every_answer_is_as_documented_and_none_is_a_5xx(
    gateway: RunningGateway, operation: Any, mode: GenerationMode, examples: int
) -> None:
    @given(operation.as_strategy(generation_mode=mode))
    @settings(patient, max_examples=examples)
    def answers(case: schemathesis.Case[Any]) -> None:
        case.headers.pop("X-Request-Timeout", None)  # who allows a microsecond gets the 504 they asked for
        case.call_and_validate(base_url=gateway.url, timeout=60, excluded_checks=[positive_data_acceptance])

    answers()


def test_arbitrary_instances_are_answered_by_the_real_model_or_pointed_at(gateway: RunningGateway) -> None:
    text = st.text(st.characters(exclude_categories=["Cs"]))

    @given(DISPATCH_MODEL.as_strategy(), st.lists(text | st.fixed_dictionaries({"text": text}), max_size=5))
    @settings(patient, max_examples=50)
    def answers(case: schemathesis.Case[Any], texts: list[str]) -> None:
        assert isinstance(case.body, dict)
        case.headers.pop("X-Request-Timeout", None)
        arbitrary: Any = case.body["instances"]
        case.body = {"model_name": "sentiment", "instances": [*texts, *arbitrary]}
        answer = case.call_and_validate(
            base_url=gateway.url, timeout=60, excluded_checks=[positive_data_acceptance]
        )
        assert answer.status_code in {200, 422}

    answers()


@pytest.mark.parametrize("operation", [each for each in OPERATIONS if "{id}" in each.path], ids=str)
@pytest.mark.parametrize("instance", ["Hello.", ""])  # the model refuses the second
def test_every_route_of_a_job_that_is_over_answers_as_documented(
    gateway: RunningGateway, operation: Any, instance: str
) -> None:
    ask = {"model_name": "sentiment", "instances": [instance]}
    job = httpx.post(f"{gateway.url}/jobs", json=ask, headers={"prefer": "wait=60"}, timeout=70).json()

    case = operation.Case(path_parameters={"id": job["id"]})
    answer = case.call_and_validate(
        base_url=gateway.url, timeout=60, excluded_checks=[positive_data_acceptance]
    )

    assert answer.status_code in {200, 202, 409}


def test_arbitrary_jobs_are_accepted_as_documented_or_pointed_at(gateway: RunningGateway) -> None:
    @given(SUBMIT.as_strategy())
    @settings(patient, max_examples=50)
    def answers(case: schemathesis.Case[Any]) -> None:
        if isinstance(case.body, dict):
            case.body = {**case.body, "model_name": "sentiment", "model_version": None}
        else:
            case.query = {**case.query, "model_name": "sentiment"}
            case.query.pop("model_version", None)
        case.headers.pop("Prefer", None)
        answer = case.call_and_validate(
            base_url=gateway.url, timeout=60, excluded_checks=[positive_data_acceptance]
        )
        assert answer.status_code in {200, 202, 422}

    answers()
