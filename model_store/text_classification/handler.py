"""TorchServe's entry point for a text classifier: requests in, JSON out.

TorchServe wants exactly one class in this module; the others travel beside it in the archive.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from classifier import Classifier
from inputs import Entry, Refusal, Shape, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from classifier import Prediction
    from ts.context import Context

REFUSED = 422
PHRASE = "Unprocessable Entity"


class TextClassificationHandler:
    """Answers every request of TorchServe's batch; what is refused fails alone.

    | request | answer |
    |---|---|
    | `{"instances": [...], "parameters": {}}` | `{"predictions": [...]}` |
    | a JSON list of instances | a JSON list |
    | a JSON string, `{"text": "..."}`, plain text, a form with the field `text` | one prediction |

    A refused instance of several holds `{"error": {"code": 422, "message": "..."}}` in its place;
    a request refused as a whole has that for its body and 422 for its status.
    """

    def initialize(self, context: Context) -> None:
        """Load the model; `handler: {precision, torch_threads}` in model-config.yaml are the settings."""
        # At INFO, TorchServe writes two lines for every request.
        logging.getLogger().setLevel(logging.WARNING)
        model_config = context.model_yaml_config or {}
        settings = known(model_config.get("handler") or {})
        torch.set_num_threads(settings.get("torch_threads") or default_threads(model_config))
        gpu = context.system_properties.get("gpu_id")
        self.classifier = Classifier(
            Path(context.system_properties["model_dir"]),
            device="cpu" if gpu is None or not torch.cuda.is_available() else f"cuda:{gpu}",
            precision=settings.get("precision", "auto"),
        )

    def handle(self, data: list[dict[str, object]], context: Context) -> list[bytes]:
        """One JSON document for each entry of `data`, in order. All texts of all entries share the passes."""
        entries = [read(fields, content_type(context, i)) for i, fields in enumerate(data)]
        texts = [item for entry in entries for item in entry.items if isinstance(item, str)]
        predictions = iter(self.classifier(texts))
        return [
            self.describe()
            if asks_for_description(data[i], context, i)
            else respond(entry, predictions, context, i)
            for i, entry in enumerate(entries)
        ]

    def describe(self) -> bytes:
        """What the management API shows as customizedMetadata."""
        return to_json(
            {
                "labels": self.classifier.labels,
                "max_tokens": self.classifier.config["max_tokens"],
                "precision": self.classifier.precision,
                "torch_threads": torch.get_num_threads(),
                "device": str(self.classifier.device),
            }
        )


def known(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` as they are. Raises ValueError for one that does not exist: it would do nothing."""
    if unknown := settings.keys() - {"precision", "torch_threads"}:
        raise ValueError(f"model-config.yaml: handler has no setting {', '.join(sorted(unknown))}.")
    return settings


def default_threads(model_config: Mapping[str, Any]) -> int:
    """One worker's share of half the cores that torch found (it heeds OMP_NUM_THREADS and the affinity).

    The other half is for the gateway and the JVM: a pool of threads waits for its slowest,
    so one that competes for every core is slower than a smaller one (2 cores, both busy with other work:
    8 texts took 61 ms at the median with one thread, 254 ms with two).
    """
    workers: int = max(1, model_config.get("maxWorkers", 1))
    return max(1, torch.get_num_threads() // (2 * workers))


def asks_for_description(fields: Mapping[str, object], context: Context, index: int) -> bool:
    """Whether this is the management API's `GET /models/NAME?customized=true`, which comes without a body."""
    return not fields and context.get_request_header(index, "describe") == "True"


def content_type(context: Context, index: int) -> str:
    """What the sender of request `index` declared; TorchServe files it under the name of the body."""
    declared = context.get_request_header(index, "body")
    return declared.get("content-type", "") if isinstance(declared, dict) else ""


def respond(entry: Entry, predictions: Iterator[Prediction], context: Context, index: int) -> bytes:
    """The body of one answer, its predictions taken from the front of `predictions`; sets status and type."""
    answers = [refusal(item) if isinstance(item, Refusal) else next(predictions) for item in entry.items]
    context.set_response_content_type(index, "application/json")
    if entry.shape is Shape.PREDICTIONS:
        return to_json({"predictions": answers})
    if entry.shape is Shape.LIST:
        return to_json(answers)
    if isinstance(entry.items[0], Refusal):
        context.set_response_status(REFUSED, PHRASE, index)
    return to_json(answers[0])


def refusal(reason: Refusal) -> dict[str, object]:
    return {"error": {"code": REFUSED, "message": reason.message}}


def to_json(value: object) -> bytes:
    """Compact UTF-8. Raises ValueError for NaN, which is no JSON: a model that yields it is broken."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
