"""Equal questions, and only those, share a fingerprint."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from domain.fingerprint import fingerprints
from domain.prediction import ModelRef, PredictionRequest

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.sampled_from([0.0, -0.0, 1.0, 1e16])
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, max_size=2)


def equal(a: Any, b: Any) -> bool:
    """Equal as JSON: no number is a boolean, and no integer a float."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return repr(a) == repr(b) if isinstance(a, float) else bool(a == b)


def turned(value: Any) -> Any:
    """The same value with the keys of every object the other way round."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return [turned(each) for each in value] if isinstance(value, list) else value


def fingerprint(instance: Any, parameters: dict[str, Any] | None = None, name: str = "m") -> bytes:
    return fingerprints(PredictionRequest(ModelRef(name, "1.0"), (instance,), parameters or {}))[0]


@given(values)
def test_keys_in_another_order_and_a_trip_through_json_change_nothing(value: Any) -> None:
    assert fingerprint(turned(value)) == fingerprint(value)
    assert fingerprint(json.loads(json.dumps(value))) == fingerprint(value)


@given(values, values)
def test_two_values_share_a_fingerprint_if_and_only_if_they_are_equal(a: Any, b: Any) -> None:
    assert (fingerprint(a) == fingerprint(b)) is equal(a, b)


@given(st.tuples(texts, objects, values), st.tuples(texts, objects, values))
def test_two_questions_share_a_fingerprint_if_and_only_if_all_their_parts_are_equal(
    a: tuple[str, dict[str, Any], Any], b: tuple[str, dict[str, Any], Any]
) -> None:
    shared = fingerprint(a[2], a[1], a[0]) == fingerprint(b[2], b[1], b[0])

    assert shared is all(map(equal, a, b))
