"""The scans of an audit on disk: a row for each scanned ray, in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas
import pyarrow

from apem_fast.experiment.run.store import RunStore, file_name_of
from apem_fast.files.checksums import checked_parquet, parquet_of

_SCANS = pyarrow.schema(
    {
        "image": pyarrow.string(),
        "explainer": pyarrow.string(),
        "stage": pyarrow.string(),
        "irrelevance": pyarrow.bool_(),
        "scanned": pyarrow.float64(),
        "scanned_flipped": pyarrow.bool_(),
        "probes": pyarrow.int64(),
        "seconds": pyarrow.float64(),
    }
)


class Scans:
    """The scans of a run: one file for each block and explainer, in the run's folder."""

    def __init__(self, store: RunStore):
        self.store = store

    def path(self, block: int, key: str) -> Path:
        return self.store.inside("audit", f"{block:05d}.{file_name_of(key)}.parquet")

    def read(self, block: int, key: str) -> pandas.DataFrame:
        """The scans in one file; empty if there is no such file.

        Raises:
            Damaged: it is not what was written.
        """
        try:
            return checked_parquet(self.path(block, key).read_bytes()).to_pandas()
        except FileNotFoundError:
            return _SCANS.empty_table().to_pandas()

    def add(self, block: int, key: str, rows: list[dict[str, Any]]) -> None:
        """Adds further scans to the file."""
        table = pyarrow.Table.from_pylist([*self.read(block, key).to_dict("records"), *rows], schema=_SCANS)
        self.store.write_file(self.path(block, key), parquet_of(table))

    def remove(self, block: int, key: str) -> None:
        self.path(block, key).unlink(missing_ok=True)
