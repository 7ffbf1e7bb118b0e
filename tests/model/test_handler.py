"""What the handler answers to each form of request, run with TorchServe's own context."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from handler import TextClassificationHandler
from hypothesis import given, settings
from hypothesis import strategies as st
from inputs import MAX_CHARACTERS, MAX_INSTANCES
from ts.context import Context, RequestProcessor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

JSON = "application/json"
GOOD, BAD = "a very good film!", "it was not fun, it was dull"
NOT_A_TEXT = 'An instance must be a string or an object {"text": string}.'
SETTINGS = {"precision": "fp32", "torch_threads": 1}


@dataclass(frozen=True, eq=False)
class Answer:
    """One response as TorchServe would send it; equal to another when scores differ by rounding at most."""

    status: int
    body: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Answer) and self.status == other.status and alike(self.body, other.body)

    __hash__ = None  # type: ignore[assignment]  # nearly equal answers could not share one


def alike(left: object, right: object) -> bool:
    """Equal JSON; floats within 1e-5, as the last digit of a sum depends on the size of the batch."""
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(alike(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(alike, left, right))
    return left == right or (isinstance(left, float) and left == pytest.approx(right, abs=1e-5))


class Server:
    """The handler on the tiny model, asked as a TorchServe worker asks it."""

    def __init__(self, folder: Path, **settings: object) -> None:
        config = {"handler": SETTINGS | settings}
        self.context = Context("tiny", str(folder), {}, 8, None, "0.12.0", model_yaml_config=config)
        self.handler = TextClassificationHandler()
        self.handler.initialize(self.context)

    def batch(self, *rows: dict[str, object], content_type: str = JSON) -> list[Answer]:
        """Send `rows` as one batch of TorchServe's, each with the headers of a request."""
        headers = {"body": {"content-type": content_type}, "explain": "False"}
        self.context.request_processor = [RequestProcessor(dict(headers)) for _ in rows]
        bodies = self.handler.handle(list(rows), self.context)
        assert all(self.context.get_response_content_type(i) == JSON for i in range(len(rows)))
        statuses = [self.context.get_response_status(i)[0] for i in range(len(rows))]
        return [Answer(status, json.loads(body)) for status, body in zip(statuses, bodies, strict=True)]

    def ask(self, body: object, content_type: str = JSON) -> Answer:
        return self.batch({"body": body}, content_type=content_type)[0]


@pytest.fixture(scope="module")
def server(served: Path) -> Server:
    return Server(served)


def error(message: str) -> dict[str, object]:
    return {"error": {"code": 422, "message": message}}


# ---- the forms of a request


def test_instances_are_answered_in_order_under_predictions(server: Server) -> None:
    answer = server.ask({"instances": [GOOD, {"text": BAD}], "parameters": {}})
    assert answer == Answer(200, {"predictions": [server.ask(GOOD).body, server.ask(BAD).body]})
    assert server.ask(GOOD) != server.ask(BAD)


def test_a_prediction_names_its_best_label_and_the_score_of_each(server: Server) -> None:
    prediction = server.ask(GOOD).body
    scores = prediction["scores"]
    assert list(prediction) == ["label", "score", "scores"]
    assert list(scores) == ["negative", "neutral", "positive"]
    assert sum(scores.values()) == pytest.approx(1, abs=2e-6)
    assert prediction["score"] == scores[prediction["label"]] == max(scores.values())
    assert all(score == round(score, 6) for score in scores.values())


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (GOOD, JSON),
        (GOOD, "text/plain"),
        ({"text": GOOD}, JSON),
        (bytearray(GOOD.encode()), "application/octet-stream"),
        (bytearray(b"\xef\xbb\xbf" + GOOD.encode()), ""),
        (bytearray(json.dumps(GOOD).encode()), "application/octet-stream"),
        (bytearray(json.dumps({"text": GOOD}).encode()), ""),
        (bytes(json.dumps({"text": GOOD}), "utf-8"), "application/vnd.api+json"),
    ],
)
def test_one_text_gets_one_prediction_however_it_is_sent(
    server: Server, body: object, content_type: str
) -> None:
    answer = server.ask(body, content_type)
    assert answer == Answer(200, server.ask(GOOD).body)
    assert "label" in answer.body


@pytest.mark.parametrize(
    "fields",
    [{"data": GOOD}, {"data": bytearray(GOOD.encode())}, {"text": bytearray(GOOD.encode())}, {"text": GOOD}],
)
def test_a_form_may_carry_the_text(server: Server, fields: dict[str, object]) -> None:
    assert server.batch(fields) == [Answer(200, server.ask(GOOD).body)]


def test_a_form_may_carry_instances(server: Server) -> None:
    fields: dict[str, object] = {
        "instances": bytearray(json.dumps([GOOD, BAD]).encode()),
        "parameters": b"{}",
    }
    assert server.batch(fields) == [server.ask({"instances": [GOOD, BAD]})]


def test_a_bare_list_gets_a_list(server: Server) -> None:
    assert server.ask([GOOD, {"text": BAD}]) == Answer(200, [server.ask(GOOD).body, server.ask(BAD).body])


def test_a_number_sent_as_bytes_is_a_text(server: Server) -> None:
    assert server.ask(bytearray(b"2012"), "application/octet-stream") == server.ask("2012")


# ---- refusals


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        (3, NOT_A_TEXT),
        (None, NOT_A_TEXT),
        ([GOOD], NOT_A_TEXT),
        ({"text": 3}, NOT_A_TEXT),
        ({"text": GOOD, "id": 1}, NOT_A_TEXT),
        ({"text": {"text": GOOD}}, NOT_A_TEXT),
        ("", "The text is empty."),
        (" \t\n\u2003", "The text is empty."),
        ({"text": ""}, "The text is empty."),
        ("half of a pair: \ud83d", "The text is not valid Unicode."),
        ("a" * (MAX_CHARACTERS + 1), "The text has 20,001 characters; at most 20,000 are allowed."),
    ],
)
def test_a_bad_instance_is_refused_in_its_place(server: Server, instance: object, message: str) -> None:
    good, bad = server.ask(GOOD).body, server.ask(BAD).body
    answer = server.ask({"instances": [GOOD, instance, BAD]})
    assert answer == Answer(200, {"predictions": [good, error(message), bad]})
    assert server.ask([instance]) == Answer(200, [error(message)])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "The text is empty."),
        ({"text": "  "}, "The text is empty."),
        (5, NOT_A_TEXT),
        (None, NOT_A_TEXT),
        ({"foo": 1}, NOT_A_TEXT),
        ({}, NOT_A_TEXT),
        ([], "There are no instances: send at least one."),
        ({"instances": []}, "There are no instances: send at least one."),
        ({"instances": GOOD}, '"instances" must be a list.'),
        ({"instances": [GOOD], "foo": 1}, 'Beside "instances" there may be "parameters" and nothing else.'),
        (
            {"instances": [GOOD] * (MAX_INSTANCES + 1)},
            "There are 1,025 instances; send at most 1,024 at a time.",
        ),
        (bytearray(b'{"text": "bro'), "The body is not valid JSON."),
        (bytearray(b"[" * 100_000), "The body is not valid JSON."),
        (bytearray(b"\xff\xfe"), "The body is not UTF-8."),
    ],
)
def test_a_request_without_sense_is_a_422_of_its_own(server: Server, body: object, message: str) -> None:
    first, refused, last = server.batch({"body": GOOD}, {"body": body}, {"body": [BAD]})
    assert refused == Answer(422, error(message))
    assert first == Answer(200, server.ask(GOOD).body)
    assert last == Answer(200, [server.ask(BAD).body])


@pytest.mark.parametrize("parameters", [{"top_k": 2}, [], 0, "", "x", [1]])
def test_parameters_it_would_ignore_are_refused(server: Server, parameters: object) -> None:
    message = 'This model takes no parameters: leave "parameters" out or empty.'
    assert server.ask({"instances": [GOOD], "parameters": parameters}) == Answer(422, error(message))


@pytest.mark.parametrize("body", [{"instances": [GOOD], "parameters": None}, {"instances": [GOOD]}])
def test_parameters_may_be_left_out(server: Server, body: object) -> None:
    assert server.ask(body).status == 200


def test_a_form_without_a_known_field_is_told_so(server: Server) -> None:
    fields: dict[str, object] = {'{"text": "a good film"}': bytearray()}  # curl -d without a content type
    (answer,) = server.batch(fields)
    assert answer.status == 422
    assert "Content-Type: application/json" in answer.body["error"]["message"]


def test_a_form_text_that_is_not_utf_8_is_refused(server: Server) -> None:
    assert server.batch({"text": bytearray(b"\xff")}) == [
        Answer(422, error("The text is not valid Unicode."))
    ]


# ---- batches


@pytest.fixture
def passes(server: Server) -> Iterator[list[list[int]]]:
    """The lengths of the texts of each forward pass, as they happen."""
    seen: list[list[int]] = []
    hook = server.handler.classifier.model.register_forward_pre_hook(
        lambda _, args: seen.append([len(text) for text in args[0]])
    )
    yield seen
    hook.remove()


def test_all_requests_of_a_batch_share_a_pass(server: Server, passes: list[list[int]]) -> None:
    server.batch({"body": [GOOD] * 30}, {"body": {"instances": [BAD, 7] * 40}}, {"body": BAD})
    assert [len(each) for each in passes] == [71]


def test_a_pass_has_a_bounded_number_of_tokens(server: Server, passes: list[list[int]]) -> None:
    server.ask([GOOD * 9 if i % 2 else "a" for i in range(64)])
    assert passes == [[3] * 32, [47] * 21, [47] * 11]  # at most 1024, as if all were as long as the longest


def test_a_text_is_cut_at_the_model_s_last_position(server: Server, passes: list[list[int]]) -> None:
    assert server.ask("good " * 500).status == 200
    assert passes == [[48]]


def test_nothing_but_refusals_needs_no_pass(server: Server, passes: list[list[int]]) -> None:
    assert server.ask({"instances": [1, None]}).status == 200
    assert passes == []


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("text"), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None)
@given(instance=json_values, before=st.integers(0, 3))
def test_whatever_stands_next_to_it_a_text_gets_the_same_answer(
    server: Server, instance: object, before: int
) -> None:
    instances = [GOOD] * before + [instance, BAD]
    answers = server.ask({"instances": instances}).body["predictions"]
    assert len(answers) == len(instances)
    for answer, alone in [(answers[-1], BAD), *[(answer, GOOD) for answer in answers[:before]]]:
        assert answer["scores"] == pytest.approx(server.ask(alone).body["scores"], abs=1e-4)
    assert ("error" in answers[before]) != ("label" in answers[before])


@settings(deadline=None)
@given(body=json_values)
def test_any_json_at_all_gets_an_answer(server: Server, body: object) -> None:
    assert server.ask(body).status in {200, 422}


# ---- loading


def test_loading_silences_torchserve_s_lines_for_every_request(served: Path) -> None:
    logging.getLogger().setLevel(logging.INFO)
    Server(served)
    assert logging.getLogger().level == logging.WARNING


def test_a_misspelt_setting_is_an_error(served: Path) -> None:
    with pytest.raises(ValueError, match="no setting precison"):
        Server(served, precison="bf16")


def test_an_unknown_precision_is_an_error(served: Path) -> None:
    with pytest.raises(ValueError, match="fp16"):
        Server(served, precision="fp16")


def test_bf16_on_request_answers_about_the_same(server: Server, served: Path) -> None:
    half = Server(served, precision="bf16")
    assert half.handler.classifier.precision == "bf16"
    assert half.ask(GOOD).body["scores"] == pytest.approx(server.ask(GOOD).body["scores"], abs=0.03)


def test_left_alone_it_picks_a_precision_by_measuring(served: Path) -> None:
    assert Server(served, precision="auto").handler.classifier.precision in {"fp32", "bf16"}


def test_the_number_of_threads_is_a_setting(served: Path) -> None:
    Server(served, torch_threads=2)
    assert torch.get_num_threads() == 2
    Server(served, torch_threads=1)
    assert torch.get_num_threads() == 1


def test_the_management_api_can_describe_the_model(server: Server) -> None:
    server.context.request_processor = [RequestProcessor({"describe": "True"})]
    (body,) = server.handler.handle([{}], server.context)
    described = json.loads(body)
    assert described["labels"] == ["negative", "positive", "neutral"]
    assert described["max_tokens"] == 48
    assert described["precision"] == "fp32"
