"""One run of `model-dispatcher batch`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import deque
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

import httpx

from bootstrap.terminal import complain, say
from interface.batch.asking import TIMEOUT, TOLERANCE, Asking, Outcome, Question
from interface.batch.output import Output, digest
from interface.batch.progress import Progress, counted
from interface.batch.rows import Row, Rows
from interface.batch.stops import AGAIN, GaveUp, Stopped, Unusable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

AHEAD = 4  # groups for each request in flight: they are under way, or wait for an earlier one's end
MOST_BYTES = 1 << 20  # of instances in one request, after which no other is added
SOME_FAILED = 1  # exit status
INTERRUPTED = 130  # the same; 128 + SIGINT, as shells count, after SIGTERM, too

Answered: TypeAlias = "tuple[list[Row], list[Outcome]]"


def run(options: argparse.Namespace) -> int:
    """Do what options.py parsed; the exit status is 0, 1 where rows have failed, or that of a stop.

    SIGTERM stops it as Ctrl-C does.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with contextlib.ExitStack() as opened:
            return _open(options, opened).finish()
    except Stopped as stop:
        complain(stop)
        return stop.exit_code
    except KeyboardInterrupt:
        say(f"Stopped. {AGAIN}")
        return INTERRUPTED


@dataclass(slots=True)
class Run:
    """An input and its output, as far as it is there."""

    options: argparse.Namespace
    rows: Rows
    output: Output
    progress: Progress

    def finish(self) -> int:
        """Answer the rows that are left; the exit status. Raises Stopped and KeyboardInterrupt."""
        try:
            self._answer_what_is_left()
        except BaseException:
            self.output.withdraw()
            raise
        say(self.progress.summary())
        return SOME_FAILED if self.output.tally.failed else 0

    def _answer_what_is_left(self) -> None:
        left, name, before = iter(self.rows), self.options.output, self.output.tally.rows
        first = next(left, None)
        if first is None:
            say(f"{name} is complete.")
            return
        if before:
            say(f"{name} has {counted(before, 'row')}; going on from there.")
        asyncio.run(self._answer(chain([first], left)))

    async def _answer(self, rows: Iterator[Row]) -> None:
        options = self.options
        limits = httpx.Limits(max_connections=options.in_flight)
        timeout = TIMEOUT + TOLERANCE
        async with httpx.AsyncClient(base_url=options.url, limits=limits, timeout=timeout) as client:
            asking = Asking(
                client,
                Question(options.model, options.model_version, options.parameters),
                most=options.instances,
                in_flight=options.in_flight,
                patience=options.patience,
            )
            telling = asyncio.create_task(self.progress.keep_telling(asking))
            try:
                await answer_in_order(rows, asking, self.output, most=AHEAD * options.in_flight)
            finally:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
                self.progress.clear()
        if len(asking.versions) > 1:
            versions = ", ".join(sorted(asking.versions))
            say(f"More than one version answered: {versions}. --model-version asks for one.")


async def answer_in_order(rows: Iterator[Row], asking: Asking, output: Output, most: int) -> None:
    """Ask for the rows in groups, `most` of them under way, and write each when all before it are written.

    Raises Stopped. Where it is cancelled, what can be written has been.
    """
    window: deque[asyncio.Task[Answered]] = deque()
    try:
        while True:
            while len(window) < most and (group := _take(rows, asking.size)):
                window.append(asyncio.create_task(_ask(group, asking)))
            if not window:
                return
            await asyncio.wait([window[0]])
            _write(window, output)
    except asyncio.CancelledError:
        _write(window, output)
        raise
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)


def _take(rows: Iterator[Row], most: int) -> list[Row]:
    taken: list[Row] = []
    size = 0
    while len(taken) < most and size < MOST_BYTES and (row := next(rows, None)):
        taken.append(row)
        size += len(row.text)
    return taken


async def _ask(rows: list[Row], asking: Asking) -> Answered:
    answers = iter(await asking.answer([row.text for row in rows if row.problem is None]))
    return rows, [next(answers) if row.problem is None else Outcome(problem=row.problem) for row in rows]


def _write(window: deque[asyncio.Task[Answered]], output: Output) -> None:
    """Those at the head that are done. Raises what they have raised, and GaveUp where the disk is full."""
    while window and window[0].done():
        rows, outcomes = window.popleft().result()
        try:
            output.write(rows, outcomes)
        except OSError as error:
            raise GaveUp(f"The output cannot be written: {error.strerror or error}. {AGAIN}") from None


def _open(options: argparse.Namespace, opened: contextlib.ExitStack) -> Run:
    """Input and output, at the first row that has no answer yet. Raises Unusable."""
    path, out = options.input, options.output
    rows = opened.enter_context(contextlib.closing(Rows(path, options.column)))
    if out.exists() and path.samefile(out):
        raise Unusable(f"{out} is the input itself.")
    asked = {
        "input": path.name,
        "sha256": digest(path),
        "kind": path.suffix.lower(),
        "column": options.column,
        "model": options.model,
        "model_version": options.model_version,
        "parameters": options.parameters,
        "with_input": options.with_input,
    }
    output = Output(out, asked, overwrite=options.overwrite, with_input=options.with_input)
    opened.enter_context(contextlib.closing(output))
    if rows.skip(output.tally.rows) < output.tally.rows:
        raise Unusable(f"{out} has more lines than {path} has rows; --overwrite begins anew.")
    return Run(options, rows, output, Progress(output.tally, rows))
