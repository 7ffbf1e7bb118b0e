from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from domain.prediction import ModelRef, PredictionRequest, PredictionResult, merge

M = ModelRef("m", "1.0")


@given(st.lists(st.lists(st.integers(), min_size=1).map(tuple), min_size=1))
def test_each_caller_of_a_merged_request_gets_the_answers_to_its_own_instances(
    asked: list[tuple[int, ...]],
) -> None:
    merged = merge([PredictionRequest(M, instances) for instances in asked])
    answer = PredictionResult(M, tuple(("answer to", each) for each in merged.instances))

    parts = answer.split([len(instances) for instances in asked])

    assert [part.predictions for part in parts] == [
        tuple(("answer to", each) for each in instances) for instances in asked
    ]
