"""The OpenAPI document and the gateway agree: schemathesis throws at one what it makes of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

load_all_checks()
# positive_data_acceptance is left out below: which host, port and instances are good, no schema can say.
patient = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    ("operation", "mode", "examples"),
    [
        *((operation, GenerationMode.POSITIVE, 10) for operation in OPERATIONS),
        (DISPATCH_MODEL, GenerationMode.POSITIVE, 50),
        (DISPATCH_MODEL, GenerationMode.NEGATIVE, 50),  # the other routes take nothing that could be wrong
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
