from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from interface.batch.output import Tally
from interface.batch.progress import Progress
from interface.batch.rows import Rows

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("failed", "well", "summary"),
    [
        (0, 0, "0 rows: 0 predictions, 0 errors."),
        (1, 0, "1 row: 0 predictions, 1 error."),
        (1, 1, "2 rows: 1 prediction, 1 error."),
        (2, 1_000, "1,002 rows: 1,000 predictions, 2 errors."),
    ],
)
def test_the_summary_counts_as_people_do(failed: int, well: int, summary: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").touch()
    tally = Tally()
    for problem in [{"title": "Refused"}] * failed + [None] * well:
        tally.add(problem)

    with closing(Rows(tmp_path / "in.txt", None)) as rows:
        said = Progress(tally, rows).summary()

    assert said.splitlines()[0] == summary
