"""Which column of a table is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interface.batch.stops import Unusable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

MOST_TOLD = 20  # names of columns that are worth telling


def position(path: Path, columns: Sequence[str], wanted: str | None) -> int:
    """Where `wanted` is among `columns`; the only one where nothing is wanted. Raises Unusable."""
    if wanted is None and len(columns) == 1:
        return 0
    names = ", ".join(columns[:MOST_TOLD]) + (", …" if len(columns) > MOST_TOLD else "")
    if wanted is None:
        raise Unusable(f"{path} has several columns; choose one with --column: {names}")
    if columns.count(wanted) != 1:
        count = "no" if wanted not in columns else "more than one"
        raise Unusable(f"{path} has {count} column {wanted!r}, but: {names}")
    return columns.index(wanted)
