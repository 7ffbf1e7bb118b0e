"""Measure how fast a model answers on this machine, without TorchServe; prints Markdown.

python model_store/text_classification/measure.py [DIRECTORY] [--threads 1 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from archive import UnfitError, say, stage
from classifier import Classifier

SENTIMENT = Path(__file__).resolve().parents[1] / "sentiment"
TEXT = "We watched it with the whole family last night, and all of us had a good time."
BATCHES = (1, 8, 32)
PRECISIONS = ("fp32", "bf16")
SECONDS = 2.0  # for each number in the table
FEWEST = 10  # measurements, however long they take


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "directory", type=Path, nargs="?", default=SENTIMENT, help="default: the sentiment model"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="measure-") as work:
        folder = Path(work) / "files"
        try:
            stage(chosen.directory, folder)
        except UnfitError as error:
            say(f"measure.py: {error}")
            sys.exit(2)
        for line in report(folder, chosen.threads):
            sys.stdout.write(f"{line}\n")


def report(folder: Path, threads: list[int]) -> list[str]:
    """The lines of the table: milliseconds for a batch, the median of at least FEWEST."""
    lines = [
        "| precision | threads | load, s | " + " | ".join(f"batch {size}, ms" for size in BATCHES) + " |"
    ]
    lines.append("|---" * (3 + len(BATCHES)) + "|")
    for count in threads:
        torch.set_num_threads(count)
        for precision in PRECISIONS:
            say(f"Measuring {precision} with {count} thread{'s' * (count > 1)} …")
            begun = time.perf_counter()
            classifier = Classifier(folder, precision=precision)
            loaded = time.perf_counter() - begun
            cells = [f"{milliseconds(classifier, size):.1f}" for size in BATCHES]
            lines.append(f"| {precision} | {count} | {loaded:.2f} | " + " | ".join(cells) + " |")
    return [*lines, "", remarks(folder)]


def remarks(folder: Path) -> str:
    begun = time.perf_counter()
    classifier = Classifier(folder)
    loaded = time.perf_counter() - begun
    tokens = len(classifier.tokenizer.encode(TEXT).ids)
    return f"Texts of {tokens} tokens. `auto` takes {classifier.precision} here and loads in {loaded:.2f} s."


def milliseconds(classifier: Classifier, size: int) -> float:
    """The median time from `size` texts to as many predictions, tokenizing included."""
    texts = [TEXT] * size
    classifier(texts)
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < SECONDS:
        begun = time.perf_counter()
        classifier(texts)
        taken.append(time.perf_counter() - begun)
    return 1000 * statistics.median(taken)


if __name__ == "__main__":
    main()
