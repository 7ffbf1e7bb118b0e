"""What `model-dispatcher batch` can be told."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from interface.gateway_address import add_url

DESCRIPTION = """Predictions for a file, through a running gateway: a line of JSON for each row, in order.
Stopped or killed, it goes on where it was when the same command is given again."""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `batch` to the commands of a parser; what it parses is for `run`."""
    parser = commands.add_parser("batch", help="predictions for a file", description=DESCRIPTION)
    add = parser.add_argument
    add("input", type=Path, help=".csv, .tsv, .jsonl, .ndjson, .txt or .parquet")
    add("-o", "--output", type=Path, required=True, help="JSON lines, one for each row")
    add("--model", required=True)
    add("--model-version", help="left out: the model's default version")
    add("--parameters", type=_object, default={}, help="a JSON object, passed on to the model's handler")
    add("--column", help="which column, or key of a JSON line; needed where a table has several")
    add("--with-input", action="store_true", help="repeat each input beside its prediction")
    add("--overwrite", action="store_true", help="begin anew where the output is there already")
    add_url(parser)
    add("--instances", type=_positive, default=32, help="at most, in one request; default: 32")
    add("--in-flight", type=_positive, default=8, help="requests at once; default: 8")
    patience = "seconds to go on trying while nothing is answered; default: 600"
    add("--patience", type=_seconds, default=600.0, help=patience)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError("should be a whole number greater than 0")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError("should be a number of seconds")
    return value


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("should be a JSON object")
    return value
