"""The light model: naive Bayes over words, pure Python, a few microseconds a text.

A real classifier for TorchServe, as small as one gets: it shows what remains when a model costs nothing.
It takes TorchServe's batches of single requests, and requests with many instances, equally well.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path
from typing import Any

LABELS = ("negative", "positive", "neutral")


class LightHandler:
    """`{"instances": [text, …]}` is answered with `{"predictions": [{"label", "score"}, …]}`."""

    def initialize(self, context: Any) -> None:  # noqa: ANN401  (ts.context.Context, of TorchServe's environment)
        """Count the words of the sentences that were archived beside this file: that is all the training."""
        logging.getLogger().setLevel(logging.WARNING)  # else TorchServe writes two lines for every request
        text = Path(context.system_properties["model_dir"], "everyday.tsv").read_text(encoding="utf-8")
        counts: list[Counter[str]] = [Counter() for _ in LABELS]
        for line in text.splitlines():
            sentence, _, label = line.rpartition("\t")
            counts[int(label)].update(sentence.lower().split())
        words = set().union(*counts)
        totals = [sum(count.values()) + len(words) for count in counts]
        self._weights = {
            word: tuple(
                math.log((count[word] + 1) / total) for count, total in zip(counts, totals, strict=True)
            )
            for word in words
        }

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[Any]:  # noqa: ANN401, ARG002
        """One answer for each request of TorchServe's batch."""
        return [{"predictions": [self._predict(text) for text in self._texts(each)]} for each in data]

    @staticmethod
    def _texts(request: dict[str, Any]) -> list[str]:
        body = request.get("body")
        instances: list[str] = body["instances"] if isinstance(body, dict) else [str(body)]
        return instances

    def _predict(self, text: str) -> dict[str, object]:
        logs = [0.0] * len(LABELS)
        for word in text.lower().split():
            for label, weight in enumerate(self._weights.get(word, ())):
                logs[label] += weight
        best = max(range(len(LABELS)), key=logs.__getitem__)
        score = 1 / sum(math.exp(log - logs[best]) for log in logs)
        return {"label": LABELS[best], "score": round(score, 6)}
