"""Parquet files, where pyarrow is installed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from interface.batch.columns import position
from interface.batch.stops import Unusable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BATCH = 1024  # rows in memory


class ParquetFile:
    """One column of a Parquet file. Raises Unusable, and OSError where it cannot be read at all."""

    counted = True

    def __init__(self, path: Path, column: str | None) -> None:
        parquet = _pyarrow("pyarrow.parquet")
        self._invalid: type[Exception] = _pyarrow("pyarrow").ArrowException
        self._path = path
        self._raw = path.open("rb")
        try:
            self._file: Any = parquet.ParquetFile(self._raw)
            names: list[str] = self._file.schema_arrow.names
            self._column = names[position(path, names, column)]
        except (self._invalid, OSError) as error:
            self._raw.close()
            raise Unusable(f"{path} is not a Parquet file: {error}") from None
        except Unusable:
            self._raw.close()
            raise
        self._rows: int = self._file.metadata.num_rows
        self._read = 0

    def values(self) -> Iterator[object]:
        """Those of the column. Raises Unusable where the file is damaged."""
        try:
            for batch in self._file.iter_batches(BATCH, columns=[self._column]):
                for value in batch.column(0).to_pylist():
                    self._read += 1
                    yield value
        except (self._invalid, OSError) as error:
            raise Unusable(f"{self._path} is damaged after row {self._read}: {error}") from None

    def part_read(self) -> float:
        """From 0 to 1."""
        return self._read / self._rows if self._rows else 1.0

    def close(self) -> None:
        self._file.close()
        self._raw.close()


def _pyarrow(name: str) -> Any:  # noqa: ANN401  (it has no types)
    try:
        return importlib.import_module(name)
    except ImportError:
        raise Unusable("Parquet files need pyarrow: pip install pyarrow") from None
