"""`python -m benchmarks`: measure, write docs/benchmarks.md, and object where forwarding became slower."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import report, results, targets
from benchmarks.bench import open_bench
from benchmarks.process import BenchmarkError
from benchmarks.progress import say
from benchmarks.sections import SECTIONS
from benchmarks.servers.torchserve import MODELS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.results import Group


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where something could not be measured, or the guard objects."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end like Ctrl-C: with everything we started
    try:
        if not options.render and not options.accept:
            _measure(options)
        return _conclude(options)
    except BenchmarkError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; `python -m benchmarks --resume` goes on with what is missing.\n")
        return 128 + signal.SIGINT


def _measure(options: argparse.Namespace) -> None:
    wanted = [name for name in options.only if not (options.resume and results.load(name))]
    if not options.resume:
        for name in wanted:
            (results.FOLDER / f"{name}.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        bench = open_bench(
            Path(folder),
            rounds=options.rounds or (1 if options.quick else 5),
            quick=options.quick,
            plain=options.plain,
        )
        for name in wanted:
            say(f"{name}:")
            SECTIONS[name].measure(bench).save()


def _conclude(options: argparse.Namespace) -> int:
    measured = _kept(SECTIONS)
    if options.accept:
        targets.accept(measured)
    report.write(measured)
    say(f"{report.PATH} is written.")
    for target in targets.targets(measured):
        say(f"  {' | '.join(target.row())}")
    objection = targets.slower(measured)
    if objection:
        sys.stderr.write(f"{objection}\n`python -m benchmarks --accept` would accept it.\n")
    return 1 if objection else 0


def _kept(names: Iterable[str]) -> dict[str, Group]:
    groups = ((name, results.load(name)) for name in names)
    return {name: group for name, group in groups if group is not None}


def _names(text: str) -> list[str]:
    names = text.replace("real", ",".join(MODELS)).split(",")
    if unknown := set(names) - set(SECTIONS):
        message = f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}"
        raise argparse.ArgumentTypeError(message)
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add(
        "--only",
        type=_names,
        default=list(SECTIONS),
        help=f"some of {','.join(SECTIONS)}; real is {' and '.join(MODELS)}",
    )
    add("--rounds", type=int, help="rounds that every side is measured in (5; 1 with --quick)")
    add("--quick", action="store_true", help="short rounds and few variants: that it runs, not how fast")
    add("--plain", action="store_true", help="the gateway without the policies that can be left out")
    add("--resume", action="store_true", help="measure only what an earlier run did not get to")
    add("--render", action="store_true", help="measure nothing; write the document again")
    add("--accept", action="store_true", help="measure nothing; make the latest run the guard's baseline")
    return parser


if __name__ == "__main__":
    sys.exit(main())
