from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from domain.fingerprint import SIZE, fingerprints
from domain.prediction import ModelRef, PredictionRequest

if TYPE_CHECKING:
    from domain.prediction import Json

ASK = PredictionRequest(ModelRef("m", "1.0"), ("x",))


def fingerprint(request: PredictionRequest) -> bytes:
    (only,) = fingerprints(request)
    return only


def of(instance: Json) -> bytes:
    return fingerprint(replace(ASK, instances=(instance,)))


def test_the_order_of_keys_does_not_matter() -> None:
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})
    assert of([{"o": {"a": 1, "b": [{"c": 3, "d": 4}]}}]) == of([{"o": {"b": [{"d": 4, "c": 3}], "a": 1}}])


def test_the_order_of_a_list_matters() -> None:
    assert of([1, 2]) != of([2, 1])


def test_values_that_python_or_a_reader_takes_for_equal_are_different_questions() -> None:
    values: list[Json] = [1, 1.0, True, "1", [1], {"a": 1}, 0, 0.0, -0.0, False, "", None, "null", [], {}]
    values += ["true", "[1]", '{"a":1}', [[1]], [1, 1], {"a": "1"}, {"a": [1]}, 10**16, 1e16, "é", "e\u0301"]

    assert len({of(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", ["Grüße", "日本語", "😀", "\u2028", "\x00", {"schlüssel": "wert"}])
def test_any_text_has_a_fingerprint_of_its_own(value: Json) -> None:
    assert len(of(value)) == SIZE
    assert of(value) != of("?")


@pytest.mark.parametrize(
    "other",
    [
        replace(ASK, model=ModelRef("n", "1.0")),
        replace(ASK, model=ModelRef("m", "2.0")),
        replace(ASK, model=ModelRef("m")),
        replace(ASK, model=ModelRef("m", "None")),
        replace(ASK, partition="tenant"),
        replace(ASK, parameters={"top_k": 1}),
    ],
)
def test_the_same_input_to_another_model_version_or_partition_is_another_question(
    other: PredictionRequest,
) -> None:
    assert fingerprint(other) != fingerprint(ASK)


def test_different_parameters_are_different_questions() -> None:
    every: list[dict[str, Json]] = [
        {},
        {"a": 1},
        {"a": 1.0},
        {"a": True},
        {"a": None},
        {"b": 1},
        {"a": 1, "b": 1},
    ]

    assert len({fingerprint(replace(ASK, parameters=parameters)) for parameters in every}) == len(every)
    assert fingerprint(replace(ASK, parameters={"a": 1, "b": 2})) == fingerprint(
        replace(ASK, parameters={"b": 2, "a": 1})
    )


def test_where_one_part_ends_and_the_next_begins_is_told_apart() -> None:
    every = [
        PredictionRequest(ModelRef("a", "b1"), ("x",)),
        PredictionRequest(ModelRef("ab", "1"), ("x",)),
        PredictionRequest(ModelRef("b1"), ("x",), partition="a"),
        PredictionRequest(ModelRef("b", "1"), ("x",), partition="a"),
        PredictionRequest(ModelRef('a","b', "1"), ("x",)),
        PredictionRequest(ModelRef("ab", "1"), ({},), parameters={"a": "x"}),
        PredictionRequest(ModelRef("ab", "1"), ({"a": "x"},)),
        PredictionRequest(ModelRef("ab", "1"), ([{"a": "x"}, {}],)),
    ]

    assert len({fingerprint(request) for request in every}) == len(every)


def test_what_does_not_change_the_answer_does_not_change_the_fingerprint() -> None:
    assert fingerprint(replace(ASK, deadline=7.0, bulk=True)) == fingerprint(ASK)


def test_each_instance_has_the_fingerprint_it_has_alone() -> None:
    assert fingerprints(replace(ASK, instances=("x", 1, "x"))) == (of("x"), of(1), of("x"))


def test_fingerprints_are_the_same_in_every_process() -> None:
    assert fingerprint(ASK).hex() == "793a7e691067c6de4a13340eb4b496f2"


def test_a_part_of_a_request_keeps_its_fingerprints() -> None:
    request = replace(
        ASK, instances=("a", "b", "c"), parameters={"k": 1}, deadline=3.0, partition="p", bulk=True
    )
    keys = fingerprints(request)

    part = request.only([2, 0], keys)

    assert part == replace(request, instances=("c", "a"), fingerprints=(keys[2], keys[0]))
    assert fingerprints(part) == (keys[2], keys[0])
