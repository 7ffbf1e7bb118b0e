"""Whatever bytes arrive: a valid body, or an error that says what is wrong with them; never anything else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.errors import InvalidRequest, MalformedRequest
from domain.finite import overflows
from interface.http.body import parse_json
from interface.http.dispatch_body import decode

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)
bodies = st.fixed_dictionaries(
    {"model_name": st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)}
    | {"instances": st.lists(documents, min_size=1, max_size=5)},
    optional={
        "model_version": st.none() | st.just("1.0"),
        "parameters": st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), documents),
        "host": st.none() | st.just("localhost"),
        "port": st.none() | st.integers(1, 65_535),
    },
)


@given(st.binary())
def test_arbitrary_bytes_never_fail_in_an_unforeseen_way(text: bytes) -> None:
    try:
        decode(text, 100)
    except InvalidRequest as error:
        assert str(error)


@given(documents)
def test_arbitrary_json_is_a_body_or_an_error_with_a_pointer(document: Any) -> None:
    try:
        decode(json.dumps(document).encode(), 100)
    except MalformedRequest:
        pytest.fail("it is JSON")
    except InvalidRequest as error:
        assert error.errors


@given(bodies)
def test_a_valid_body_arrives_as_it_was_sent(sent: dict[str, Any]) -> None:
    body = decode(json.dumps(sent).encode(), 100)

    assert body.instances == sent["instances"]
    assert (body.model_name, body.parameters) == (sent["model_name"], sent.get("parameters", {}))


@given(documents, st.sampled_from([math.inf, -math.inf, math.nan]), st.data())
def test_a_number_that_is_not_finite_is_found_wherever_it_hides(
    document: Any,
    number: float,
    data: st.DataObject,
) -> None:
    hidden: Any = number
    for _ in range(data.draw(st.integers(0, 5))):
        hidden = data.draw(st.sampled_from([[document, hidden], {"a/~": hidden, "b": document}]))

    with pytest.raises(InvalidRequest) as refusal:
        parse_json(json.dumps(hidden).encode())

    pointer = refusal.value.errors[0].pointer
    value = hidden
    for step in filter(None, pointer.split("/")):
        value = value[int(step) if isinstance(value, list) else step.replace("~1", "/").replace("~0", "~")]
    assert not math.isfinite(value)


@given(
    st.integers(0, 400),
    st.integers(0, 400),
    st.text("0123456789", min_size=1),
    st.sampled_from(["e", "E", "e+"]),
)
@example(250, 99, "0", "e")
def test_no_number_that_reads_as_infinity_escapes(zeros: int, exponent: int, digits: str, e: str) -> None:
    for number in (f"1{'0' * zeros}{e}{exponent}", f"1{'0' * zeros}.{digits}", f"0.{digits}{e}{exponent}"):
        text = f'["3f2b1c4e1234", {number}]'
        assert overflows(text.encode()) is not math.isfinite(json.loads(text)[1])
