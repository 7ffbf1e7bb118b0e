"""What a request to a text classifier may look like, and why it is refused when it does not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_CHARACTERS = 20_000  # a model reads a few hundred tokens: what is longer was sent by mistake
MAX_INSTANCES = 1_024  # keeps one request well below responseTimeout, which kills the worker


class Shape(Enum):
    """How the answer to a request looks."""

    PREDICTION = auto()  # one object: the request was one text
    LIST = auto()  # a list of them: the request was a bare list
    PREDICTIONS = auto()  # {"predictions": [...]}: the request was {"instances": [...]}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An instance that gets no prediction. `message` is for its sender and quotes nothing of it."""

    message: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One request: its texts, in order, each fit for the model or refused. Never empty."""

    shape: Shape
    items: list[str | Refusal]


def read(fields: Mapping[str, object], content_type: str = "") -> Entry:
    """Read one entry of TorchServe's batch, whatever is in it; what makes no sense comes back as a refusal.

    TorchServe puts a body under "body" and the fields of a form under their own names.
    Values are what its JSON parser made of them, `str` for text, or bytes;
    `content_type` is the body's, as its sender declared it.
    """
    for name in ("body", "data"):
        if name in fields:
            return entry_of(
                decoded(fields[name], declared_json=name == "body" and "json" in content_type.lower())
            )
    if not fields.keys() & {"text", "instances"}:
        return refused(
            'The form has no field "text" or "instances"; send JSON as Content-Type: application/json.'
        )
    return entry_of({name: field_value(name, value) for name, value in fields.items()})


def field_value(name: str, value: object) -> object:
    """A form's `text` is taken literally; its other fields are JSON where they can be."""
    if name == "text" and isinstance(value, (bytes, bytearray)):
        return value.decode("utf-8", "surrogateescape")  # what is not UTF-8 is refused with the text
    return decoded(value, declared_json=False)


def decoded(value: object, *, declared_json: bool) -> object:
    """Bytes as JSON, else as plain text; a number or `true` without a JSON content type is text too.

    TorchServe hands over bytes where the content type is neither JSON nor text, and where the JSON is broken.
    """
    if not isinstance(value, (bytes, bytearray)):
        return value
    try:
        text = value.decode("utf-8-sig")  # editors on Windows begin a file with a mark
    except UnicodeDecodeError:
        return Refusal("The body is not UTF-8.")
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):  # RecursionError: ten thousand opening brackets
        return Refusal("The body is not valid JSON.") if declared_json else text
    return parsed if declared_json or isinstance(parsed, (str, list, dict)) else text


def entry_of(body: object) -> Entry:
    if isinstance(body, Refusal):
        return Entry(Shape.PREDICTION, [body])
    if isinstance(body, list):
        return several(Shape.LIST, body)
    if isinstance(body, dict) and "instances" in body:
        return wrapped(body)
    return Entry(Shape.PREDICTION, [text_of(body)])


def wrapped(body: Mapping[str, object]) -> Entry:
    """The body {"instances": [...], "parameters": {}}."""
    instances = body["instances"]
    if body.keys() - {"instances", "parameters"}:
        return refused('Beside "instances" there may be "parameters" and nothing else.')
    if body.get("parameters") not in ({}, None):
        return refused('This model takes no parameters: leave "parameters" out or empty.')
    if not isinstance(instances, list):
        return refused('"instances" must be a list.')
    return several(Shape.PREDICTIONS, instances)


def several(shape: Shape, instances: list[object]) -> Entry:
    if not instances:
        return refused("There are no instances: send at least one.")
    if len(instances) > MAX_INSTANCES:
        return refused(f"There are {len(instances):,} instances; send at most {MAX_INSTANCES:,} at a time.")
    return Entry(shape, [text_of(instance) for instance in instances])


def refused(message: str) -> Entry:
    """The whole request refused, its instances unread."""
    return Entry(Shape.PREDICTION, [Refusal(message)])


def text_of(instance: object) -> str | Refusal:
    """The text of an instance: a string, or an object with that string under "text" alone."""
    text = instance["text"] if isinstance(instance, dict) and instance.keys() == {"text"} else instance
    if not isinstance(text, str):
        return Refusal('An instance must be a string or an object {"text": string}.')
    if not text.strip():
        return Refusal("The text is empty.")
    if len(text) > MAX_CHARACTERS:
        return Refusal(f"The text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed.")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair: "\ud83d"
        return Refusal("The text is not valid Unicode.")
    return text
