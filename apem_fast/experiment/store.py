"""A run on disk: options and versions, one Parquet shard for each block of images and explainer, pictures and maps.

    run.json                          options, versions, the explainers' options
    shards/00000.images.parquet       what is known of each image of block 0
    shards/00000.gradient.parquet     the results of one explainer on block 0: a row for each image and stage
    photographs/NAME.png, maps/EXPLAINER/STAGE/NAME.png

Every file is written whole and renamed into place, a shard after its maps: what is there is complete, and a run that
was killed at any moment continues with the first shard that is missing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pandas
import pyarrow
import pyarrow.parquet

from apem_fast.experiment.options import RunOptions
from apem_fast.experiment.provenance import provenance
from apem_fast.explain import explainer_from

IMAGES = "images"


def file_name_of(key: str) -> str:
    """An explainer's key as part of a file name, on any system; different for different keys."""
    name = re.sub(r"[^\w.=+-]", ",", key, flags=re.ASCII)
    if name == key.replace(":", ","):
        return name
    return f"{name}.{hashlib.blake2b(key.encode(), digest_size=4).hexdigest()}"


class RunStore:
    """The folder of one run."""

    def __init__(self, folder: str | Path):
        """Open a run that exists.

        Raises:
            ValueError: there is no run in this folder, or its record cannot be read.
        """
        self.folder = Path(folder)
        try:
            self.record: dict[str, Any] = json.loads((self.folder / "run.json").read_text("utf-8"))
            self.options = RunOptions.from_record(self.record["options"])
        except FileNotFoundError:
            raise ValueError(f"{self.folder} holds no run (there is no run.json in it)") from None
        except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{self.folder / 'run.json'} cannot be read as a run's record ({error})") from None

    @classmethod
    def for_run(cls, folder: str | Path, options: RunOptions) -> RunStore:
        """Start a run in an empty or missing folder, or continue the run of the same options that it holds.

        Raises:
            ValueError: the folder holds something else, a run with other options or versions, or cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "run.json").exists():
                store = cls(folder)
                store._continue_with(options)
                return store
            if any(folder.iterdir()):
                raise ValueError(f"{folder} is not empty and holds no run; choose an empty or a new folder")
            _write(folder / "run.json", _json(_record(options)))
        except OSError as error:
            raise ValueError(f"{folder} cannot be used for results ({error.strerror})") from None
        return cls(folder)

    def _continue_with(self, options: RunOptions) -> None:
        for name, (ours, theirs) in options.conflicts(self.options).items():
            raise ValueError(
                f"{self.folder} holds a run with {name}={_plain(theirs)}, not {_plain(ours)}; "
                f"choose another folder, or the same options to continue that run"
            )
        record = _record(options)
        own, other = (
            record["made_with"]["packages"].get("apem_fast"),
            self.record["made_with"]["packages"].get("apem_fast"),
        )
        if own != other:
            raise ValueError(
                f"{self.folder} holds a run of apem_fast {other}, and this is {own}; choose another folder"
            )
        self.record["explainers"] |= record["explainers"]
        self.record["options"]["explainers"] = list(self.record["explainers"])
        _write(self.folder / "run.json", _json(self.record))
        self.options = RunOptions.from_record(self.record["options"])

    # -- shards --------------------------------------------------------------------------------------------------

    def _shard(self, block: int, key: str) -> Path:
        return self.folder / "shards" / f"{block:05d}.{file_name_of(key)}.parquet"

    def has(self, block: int, key: str) -> bool:
        """Whether this shard is there and whole."""
        try:
            pyarrow.parquet.read_metadata(self._shard(block, key))
        except (FileNotFoundError, pyarrow.ArrowInvalid):
            return False
        return True

    def write(self, block: int, key: str, rows: list[dict[str, Any]]) -> None:
        """Write one shard whole."""
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        _write(self._shard(block, key), sink.getvalue().to_pybytes())

    def read(self, block: int, key: str) -> pandas.DataFrame:
        return pyarrow.parquet.ParquetFile(self._shard(block, key)).read().to_pandas()

    def _read_all(self, key: str) -> pandas.DataFrame:
        blocks = sorted((self.folder / "shards").glob(f"{'[0-9]' * 5}.{file_name_of(key)}.parquet"))
        numbers = [int(path.name.split(".")[0]) for path in blocks]
        frames = [self.read(number, key) for number in numbers if self.has(number, key)]
        return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()

    def images(self) -> pandas.DataFrame:
        """One row for each image."""
        return self._read_all(IMAGES)

    def results(self) -> pandas.DataFrame:
        """One row for each image, explainer and stage that is done, explainers in the order they were asked for."""
        frames = [self._read_all(key) for key in self.options.explainers]
        frames = [frame for frame in frames if len(frame)]
        return pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame()

    # -- pictures ------------------------------------------------------------------------------------------------

    def photograph(self, image: str) -> Path:
        return self.folder / "photographs" / f"{image}.png"

    def map(self, image: str, explainer: str, stage: str) -> Path:
        return self.folder / "maps" / file_name_of(explainer) / stage / f"{image}.png"

    def write_file(self, path: Path, contents: bytes | str) -> Path:
        """Write a file of the run whole; returns its path."""
        return _write(path, contents)


def _record(options: RunOptions) -> dict[str, Any]:
    explainers = {key: explainer_from(key) for key in options.explainers}
    return {
        "options": options.record(),
        "explainers": {key: {"name": one.name, "options": one.options} for key, one in explainers.items()},
        "made_with": provenance(options.device),
    }


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def _write(path: Path, contents: bytes | str) -> Path:
    """Write to a neighbour, then rename: a reader sees the old file, the new file, or none, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(neighbour, "wb") as file:
            file.write(contents.encode("utf-8") if isinstance(contents, str) else contents)
            file.flush()
            os.fsync(file.fileno())
        neighbour.replace(path)
    finally:
        neighbour.unlink(missing_ok=True)
    return path
