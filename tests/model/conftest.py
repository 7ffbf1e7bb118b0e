"""Puts the classifier's plain files on the path, as TorchServe does with those of an archive."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

MODEL_STORE = Path(__file__).resolve().parents[2] / "model_store"
sys.path.insert(0, str(MODEL_STORE / "text_classification"))

from archive import stage  # noqa: E402  (found on the path above)
from tiny_bert import write_tiny_bert  # noqa: E402


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder as an archive holds it."""
    folder = tmp_path_factory.mktemp("tiny")
    stage(write_tiny_bert(folder / "source"), folder / "served")
    return folder / "served"
