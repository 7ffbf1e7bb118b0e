"""The committed sentiment model, as it is served, says what a person would say."""

from __future__ import annotations

import pytest
from archive import stage
from classifier import Classifier
from conftest import MODEL_STORE

SENTIMENT = MODEL_STORE / "sentiment"
LABELS = ["negative", "positive", "neutral"]  # the numbers in the data files
REQUIRED = 0.85  # of sentences it was not trained on; accuracy.json has the figures on SST-2


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = tmp_path_factory.mktemp("sentiment") / "served"
    stage(SENTIMENT, folder)
    return Classifier(folder, precision="fp32")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("I loved every minute of it.", "positive"),
        ("Utterly boring.", "negative"),
        ("What's new?", "neutral"),
    ],
)
def test_plain_cases_are_plain(classifier: Classifier, text: str, label: str) -> None:
    assert classifier([text])[0]["label"] == label


def test_everyday_sentences_it_never_saw_are_classified(classifier: Classifier) -> None:
    rows = [
        line.rsplit("\t", 1)
        for line in (SENTIMENT / "everyday_dev.tsv").read_text("utf-8").splitlines()
        if line
    ]
    predictions = classifier([text for text, _ in rows])
    pairs = zip(predictions, rows, strict=True)
    wrong = [text for prediction, (text, label) in pairs if prediction["label"] != LABELS[int(label)]]
    assert len(wrong) <= (1 - REQUIRED) * len(rows), wrong
