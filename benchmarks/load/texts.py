"""The texts that are sent: everyday sentences, recombined so that there are enough different ones."""

from __future__ import annotations

import json
import random
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

from benchmarks.process import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

SOURCES = ("everyday.tsv", "everyday_dev.tsv")
STEP = 7_368_787  # prime, so that it visits every text once before it comes back
MOST_SENTENCES = 5
ZIPF_TEXTS = 10_000
ZIPF_EXPONENT = 1.1


@cache
def sentences() -> tuple[str, ...]:
    """The sentences beside the sentiment model, each once."""
    folder = ROOT / "model_store" / "sentiment"
    lines = [line for name in SOURCES for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    return tuple(dict.fromkeys(line.partition("\t")[0] for line in lines))


def text(number: int) -> str:
    """Text `number`: one to five sentences, 16 words on average (standard deviation 8), and its number.

    Real texts are not all of one length; with the number no two are equal.
    """
    known = sentences()
    place = number * STEP % len(known) ** MOST_SENTENCES
    chosen = (
        known[place // len(known) ** power % len(known)] for power in range(1 + number % MOST_SENTENCES)
    )
    return f"{' '.join(chosen)} #{number}"


class Texts:
    """Hands out texts: unique ones never twice in one run, popular ones by Zipf's law.

    The popular ones are the first `ZIPF_TEXTS`; text k is asked for in proportion to 1 / k ** 1.1.
    """

    def __init__(self) -> None:
        self._next = ZIPF_TEXTS
        self._weights = list(accumulate((k + 1) ** -ZIPF_EXPONENT for k in range(ZIPF_TEXTS)))

    def unique(self, count: int) -> list[str]:
        """`count` texts that nobody was given before."""
        first, self._next = self._next, self._next + count
        return [text(number) for number in range(first, self._next)]

    def zipf(self, count: int, seed: int) -> list[str]:
        """`count` texts, popular ones often; the same for the same `seed`."""
        chance = random.Random(seed)  # noqa: S311  (a load, not a secret)
        return [text(k) for k in chance.choices(range(ZIPF_TEXTS), cum_weights=self._weights, k=count)]


def write_bodies(path: Path, texts: Iterable[str], body: Callable[[str], object]) -> None:
    """One JSON body a line, in the order in which they are to be sent."""
    path.write_text("".join(f"{json.dumps(body(each))}\n" for each in texts), encoding="utf-8")


def dispatch_body(model: str) -> Callable[[str], dict[str, object]]:
    """What a gateway is asked."""
    return lambda each: {"model_name": model, "instances": [each]}


def torchserve_body(each: str) -> dict[str, object]:
    """What TorchServe itself is asked."""
    return {"instances": [each]}


def repeats(texts: Sequence[str]) -> float:
    """The share of `texts` that came before."""
    return 1 - len(set(texts)) / len(texts)
