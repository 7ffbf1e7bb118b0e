from __future__ import annotations

from typing import TYPE_CHECKING

from domain import errors
from domain.error_response import ErrorResponse, kind
from interface.http.problem import STATUS, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator

BRANCHES = {errors.DispatchError, errors.RequestRejected, errors.Unavailable, errors.ServerError}


def tree(root: type[errors.DispatchError] = errors.DispatchError) -> Iterator[type[errors.DispatchError]]:
    yield root
    for below in root.__subclasses__():
        yield from tree(below)


def test_every_error_that_can_be_raised_has_a_status() -> None:
    assert set(tree()) - BRANCHES == set(STATUS)


def test_every_error_is_drawn_in_the_tree_of_the_module_docstring() -> None:
    assert errors.__doc__ is not None
    for error in tree():
        assert error.__name__ in errors.__doc__


def test_every_kind_of_error_has_a_name_of_its_own_and_a_sentence() -> None:
    kinds = [kind(error) for error in tree()]

    assert len(set(kinds)) == len(kinds)
    assert kind(errors.ModelNotFound) == "model-not-found"
    assert all(error.summary().endswith((".", ";")) for error in tree())


def test_a_models_own_status_is_passed_on() -> None:
    assert status_of(errors.InputRejectedByModel("no", code=418)) == 418
    assert status_of(errors.InputRejectedByModel("no")) == 422


def test_an_error_response_says_what_happened_to_which_request() -> None:
    wrong = errors.FieldError("/instances/0", "too long")

    told = ErrorResponse.of(errors.InvalidRequest("Bad.", [wrong]), "r-1")

    assert told == ErrorResponse("invalid-request", "The request is not valid", "Bad.", "r-1", (wrong,))
