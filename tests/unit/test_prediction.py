from __future__ import annotations

import pytest

from domain.prediction import ModelRef, PredictionRequest, PredictionResult, ServerAddress, merge

M = ModelRef("m", "1.0")


def test_merged_requests_are_one_request_and_its_result_splits_into_theirs() -> None:
    merged = merge([PredictionRequest(M, ("a",)), PredictionRequest(M, ("b", "c"))])

    result = PredictionResult(M, tuple(str(each).upper() for each in merged.instances))

    assert [part.predictions for part in result.split([1, 2])] == [("A",), ("B", "C")]


def test_parameters_that_only_python_thinks_equal_do_not_travel_together() -> None:
    yes, one = [PredictionRequest(M, ("a",), parameters={"k": value}) for value in (True, 1)]

    with pytest.raises(ValueError, match="travel together"):
        merge([yes, one])


@pytest.mark.parametrize(
    "other",
    [
        PredictionRequest(ModelRef("m", "2.0"), ("b",)),
        PredictionRequest(M, ("b",), parameters={"top": 1}),
        PredictionRequest(M, ("b",), server=ServerAddress("h", 1)),
    ],
)
def test_requests_that_ask_for_different_things_never_travel_together(other: PredictionRequest) -> None:
    with pytest.raises(ValueError, match="travel together"):
        merge([PredictionRequest(M, ("a",)), other])


def test_merged_requests_wait_as_long_as_the_most_patient_of_them() -> None:
    soon, late = PredictionRequest(M, ("a",), deadline=1.0), PredictionRequest(M, ("b",), deadline=9.0)
    forever = PredictionRequest(M, ("c",))

    assert merge([soon, late]).deadline == 9.0
    assert merge([soon, forever]).deadline is None


def test_a_result_of_the_wrong_length_is_never_split() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        PredictionResult(M, ("A",)).split([1, 1])


@pytest.mark.parametrize(
    ("address", "named"),
    [
        (ServerAddress(), True),
        (ServerAddress("h"), True),
        (ServerAddress(None, 1), True),
        (ServerAddress("h", 1), True),
        (ServerAddress("h", 2), False),
        (ServerAddress("evil", 1), False),
    ],
)
def test_an_address_names_only_the_servers_that_match_every_part_of_it(
    address: ServerAddress, named: bool
) -> None:
    assert address.names("h", 1) is named
