"""One side of a comparison: where it is asked, how, and what it costs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.process import BenchmarkError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.process import Program

PATIENCE = 60.0  # seconds


@dataclass(frozen=True, slots=True)
class Side:
    """`url` is where predictions are asked for; `body` makes the JSON for one text.

    `program` is charged for the requests; None where nobody is to be charged.
    `remembers` says that it answers a repeated text from a cache. `parts` are all programs that take part,
    by their names. Where an answer lacks the word `answers`, it is none.
    """

    name: str
    url: str
    body: Callable[[str], object]
    program: Program | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    remembers: bool = False
    parts: Mapping[str, Program] = field(default_factory=dict)
    answers: str = "label"

    def cpu_seconds(self) -> float:
        """Processor time it has used so far."""
        return self.program.cpu_seconds() if self.program else 0.0

    def cpu_of_parts(self) -> dict[str, float]:
        """The same of all its parts."""
        return {name: program.cpu_seconds() for name, program in self.parts.items()}

    def settle(self, text: str) -> None:
        """Wait until `text` is answered, after all that was asked before.

        TorchServe computes answers for callers who have left. Raises BenchmarkError after a minute.
        """
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                return self.check(text)
            except BenchmarkError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.2)

    def check(self, text: str = "This is a test.") -> None:
        """Ask once. Raises BenchmarkError where the answer is no prediction: nothing may be measured then."""
        request = urllib.request.Request(  # noqa: S310  (http, to ourselves)
            self.url,
            json.dumps(self.body(text)).encode(),
            {"Content-Type": "application/json", **self.headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
                said = answer.read().decode()
        except urllib.error.HTTPError as error:
            raise BenchmarkError(f"{self.name} answers {error.code}: {error.read().decode()[:500]}") from None
        except OSError as error:
            raise BenchmarkError(f"{self.name} does not answer: {error}") from None
        if self.answers not in said:
            raise BenchmarkError(f"{self.name} answers without a prediction: {said[:500]}")
