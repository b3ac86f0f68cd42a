"""A run on disk: options and versions, one Parquet shard for each block of images and explainer, pictures and maps.

    run.json                          options, versions, the explainers' options, digests of the network and the images
    selection.json                    the images that take part, in order; block 0 is the first of them
    shards/00000.images.parquet       what is known of each image of block 0
    shards/00000.gradient.parquet     the results of one explainer on block 0: a row for each image and stage
    shards/00000.left-out.parquet     files of block 0 that could not be read, if there are any
    page.json                         the options of the page index.html
    photographs/NAME.png, maps/EXPLAINER/STAGE/NAME.png
    audit/                            scans of rays drawn at random, see `audit`

Every file is written whole and renamed into place, a shard after its maps. So each file that exists is complete, and a
run that was killed at any moment continues with the missing shards. A shard belongs to one process of the run.

Records and shards carry a checksum of their own content, see `checksums`: a damaged one is reported and never used. A
run may come from anybody: reading it imports nothing, names in it cannot lead outside its folder, and links in the
folder are not followed on writing.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from apem_fast.extras import extra
from apem_fast.files.whole import part_of, write_whole

with extra("experiment", "a run"):
    import pandas
    import pyarrow

from apem_fast.experiment.inputs.image_folders import LeftOut
from apem_fast.experiment.inputs.selection import Selection
from apem_fast.experiment.run import tables
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.provenance import provenance
from apem_fast.explain import explainer_from
from apem_fast.files.checksums import (
    Damaged,
    checked_json,
    checked_parquet,
    json_with_checksum,
    parquet_of,
)

IMAGES, LEFT_OUT = "images", "left-out"
TABLES = {IMAGES: tables.IMAGES, LEFT_OUT: tables.LEFT_OUT}


def file_name_of(key: str) -> str:
    """An explainer's key as part of a file name on any system; different keys give different names."""
    name = re.sub(r"[^\w.=+-]", ",", key, flags=re.ASCII)
    if name == key.replace(":", ",") and len(name) <= 100:
        return name
    return f"{name[:100]}.{hashlib.blake2b(key.encode(), digest_size=4).hexdigest()}"


class RunStore:
    """The folder of one run."""

    def __init__(self, folder: str | Path):
        """Opens a run that exists.

        Raises:
            ValueError: there is no run in this folder, or its record cannot be read.
        """
        self.folder = Path(folder)
        try:
            self.record: dict[str, Any] = checked_json((self.folder / "run.json").read_bytes())
            self.options = RunOptions.from_record(self.record["options"])
        except FileNotFoundError:
            raise ValueError(f"{self.folder} holds no run (there is no run.json in it)") from None
        except (OSError, KeyError, TypeError, AttributeError, Damaged) as error:
            raise ValueError(f"{self.folder / 'run.json'} cannot be read as a run's record ({error})") from None

    @classmethod
    def for_run(cls, folder: str | Path, options: RunOptions, digests: Mapping[str, str]) -> RunStore:
        """Starts a run in an empty or missing folder, or opens the run with the same options that it holds.

        Args:
            folder: of the run.
            options: of the run.
            digests: hashes of inputs that the options only name, "network" and "images", which must not have changed.

        Raises:
            ValueError: the folder holds something else, or a run with other options or versions, or cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / "run.json").exists():
                store = cls(folder)
                store._continue_with(options, digests)
                return store
            if any(path.name != part_of(folder / "run.json").name for path in folder.iterdir()):
                raise ValueError(f"{folder} is not empty and holds no run; choose an empty or a new folder")
            _write(folder, folder / "run.json", json_with_checksum(_record(options) | {"digests": dict(digests)}))
        except OSError as error:
            raise ValueError(f"{folder} cannot be used for results ({error.strerror})") from None
        return cls(folder)

    def _continue_with(self, options: RunOptions, digests: Mapping[str, str]) -> None:
        for name, (ours, theirs) in options.conflicts(self.options).items():
            raise ValueError(
                f"{self.folder} holds a run with {name}={_plain(theirs)}, not {_plain(ours)}; "
                f"choose another folder, or the same options to continue that run"
            )
        for name, digest in digests.items():
            if digest != self.record.get("digests", {}).get(name):
                raise ValueError(
                    f"{self.folder} holds a run with the same {name}={getattr(options, name)} as it was before; it has "
                    f"changed since, so choose another folder, or undo the change to continue that run"
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
        self.write_file(self.folder / "run.json", json_with_checksum(self.record))
        self.options = RunOptions.from_record(self.record["options"])

    @staticmethod
    @contextmanager
    def claimed(folder: str | Path) -> Iterator[None]:
        """Claims a folder for one run at a time, and makes it if it is missing.

        The claim ends with the process, even if that is killed.

        Raises:
            ValueError: another process works in it, or it cannot be used.
        """
        try:
            import fcntl
        except ImportError:  # not a system that can
            yield
            return
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise ValueError(f"{folder} cannot be used for results ({error.strerror})") from None
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another run is at work in {folder}") from None
            except OSError:
                pass  # a file system without locks
            yield
        finally:
            os.close(handle)

    # -- images --------------------------------------------------------------------------------------------------

    def selection(self) -> Selection | None:
        """The chosen images; None if they are not chosen yet."""
        path = self.folder / "selection.json"
        try:
            record = checked_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, Damaged) as error:
            raise ValueError(
                f"{path} is damaged ({error}), so it is not known which images take part; choose another folder, or "
                "put a copy of the file there"
            ) from None
        return Selection(tuple(record["images"]), tuple(LeftOut(*one) for one in record["left_out"]), record["note"])

    def discard(self) -> None:
        """Removes a run that failed before it chose its images."""
        (self.folder / "run.json").unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def write_selection(self, selection: Selection) -> None:
        record = {
            "images": list(selection.names),
            "left_out": [astuple(one) for one in selection.left_out],
            "note": selection.note,
        }
        self.write_file(self.folder / "selection.json", json_with_checksum(record))

    def left_out(self) -> list[LeftOut]:
        """The files that were left out, with the reason."""
        chosen = self.selection()
        unreadable = self._read_all(LEFT_OUT).to_dict("records")
        return [*(chosen.left_out if chosen else ()), *(LeftOut(**row) for row in unreadable)]

    # -- shards --------------------------------------------------------------------------------------------------

    def _shard(self, block: int, key: str) -> Path:
        return self.folder / "shards" / f"{block:05d}.{file_name_of(key)}.parquet"

    def shard_name(self, block: int, key: str) -> str:
        """The path of a shard within the run's folder."""
        return f"shards/{self._shard(block, key).name}"

    def forget(self, block: int, key: str) -> None:
        """Removes a shard, which is then done again."""
        self._shard(block, key).unlink(missing_ok=True)

    def has(self, block: int, key: str) -> bool:
        """Whether this shard exists.

        Raises:
            DamagedShard: it exists and is damaged.
        """
        try:
            self.read(block, key)
        except FileNotFoundError:
            return False
        return True

    def _schema(self, key: str) -> pyarrow.Schema:
        """The columns of every shard of this kind, also of one without rows, or with images of unknown classes."""
        if key in TABLES:
            return tables.schema_of(TABLES[key])
        o = self.options
        return tables.schema_of(tables.columns_of_results(o.shuffles, o.measures, o.curves))

    def write(self, block: int, key: str, rows: list[dict[str, Any]]) -> None:
        """Writes one shard whole."""
        self.write_file(self._shard(block, key), parquet_of(pyarrow.Table.from_pylist(rows, schema=self._schema(key))))

    def read(self, block: int, key: str) -> pandas.DataFrame:
        """The rows of one shard.

        Raises:
            FileNotFoundError: it is not there.
            DamagedShard: it is not what was written.
        """
        path = self._shard(block, key)
        try:
            return checked_parquet(path.read_bytes()).to_pandas()
        except FileNotFoundError:
            raise
        except (OSError, Damaged) as error:
            raise DamagedShard(
                f"{path} is damaged ({error}); the command that made this run sets the file aside and does it again"
            ) from None

    def set_aside(self, block: int, key: str) -> str | None:
        """Renames a damaged shard, so that it is done again; returns a sentence on it, or None if it is not damaged."""
        try:
            self.has(block, key)
        except DamagedShard as error:
            path = self._shard(block, key)
            aside = next(p for n in range(10**6) if not (p := path.with_name(f"{path.name}.damaged-{n}")).exists())
            try:
                path.replace(aside)
            except OSError as problem:
                raise ValueError(f"{error}, but it cannot be renamed ({problem.strerror})") from None
            return f"{path} is damaged; it was set aside as {aside.name}, and is done again"
        return None

    def _read_all(self, key: str) -> pandas.DataFrame:
        blocks = sorted((self.folder / "shards").glob(f"{'[0-9]' * 5}.{file_name_of(key)}.parquet"))
        numbers = [int(path.name.split(".")[0]) for path in blocks]
        return _joined(self.read(number, key) for number in numbers)

    def images(self) -> pandas.DataFrame:
        """One row for each image: its name, its true class, and the network's prediction.

        If the true class is unknown, `correct` is missing, `loss` is NaN, `truth` is empty and `truth_label` is -1.
        """
        images = self._read_all(IMAGES)
        return images.astype({"correct": "boolean"}) if len(images) else images

    def dropped(self) -> dict[str, list[str]]:
        """The sources of images of which the network does not see everything, by what it does not see."""
        images = self.images()
        found: dict[str, list[str]] = {}
        if "dropped" in images:  # an older run has no such column
            for source, words in zip(images["source"], images["dropped"].fillna("")):
                for word in filter(None, words.split(", ")):
                    found.setdefault(word, []).append(source)
        return found

    def results(self) -> pandas.DataFrame:
        """One row for each finished image, explainer and stage, with the explainers in the order of the options.

        Rows with a `flag` have no epsilons; the flag says why.
        """
        return _joined(self._read_all(key) for key in self.options.explainers)

    # -- pictures ------------------------------------------------------------------------------------------------

    def inside(self, *names: str) -> Path:
        """A path in the run's folder, for names from its files, which may come from anybody.

        Raises:
            ValueError: a name that would lead elsewhere, or a link.
        """
        path = self.folder
        for name in names:
            if name in ("", ".", "..") or any(sign in name for sign in "/\\:\0"):
                raise ValueError(f"{self.folder} names a file that is no plain name: {name!r}")
            path /= name
            if path.is_symlink():
                raise ValueError(f"{path} is a symbolic link, and those are not followed inside a run")
        return path

    def photograph(self, image: str) -> Path:
        return self.inside("photographs", f"{_plain_file(image)}.png")

    def map(self, image: str, explainer: str, stage: str) -> Path:
        return self.inside("maps", file_name_of(explainer), stage, f"{_plain_file(image)}.png")

    # -- the page ------------------------------------------------------------------------------------------------

    def page_has_papers(self) -> bool:
        """Whether the run's page had the papers' tables when it was last written; False if there is no page.

        Raises:
            ValueError: the record of it is damaged.
        """
        path = self.inside("page.json")
        try:
            return bool(checked_json(path.read_bytes())["papers"])
        except FileNotFoundError:
            return False
        except (OSError, KeyError, Damaged) as error:
            raise ValueError(f"{path} is damaged ({error}); apem-fast report writes it again") from None

    def write_page_record(self, *, papers: bool) -> None:
        """Records the options of the run's page, for the next time that it is written."""
        self.write_file(self.inside("page.json"), json_with_checksum({"papers": papers}))

    def write_file(self, path: Path, contents: bytes | str) -> Path:
        """Writes a file of the run, or a page beside it, whole; returns its path."""
        return _write(self.folder, path, contents)


class DamagedShard(ValueError):
    """A shard whose content is not what was written."""


def _plain_file(image: str) -> str:
    """The name of an image as part of a file name, without folders. A name that begins with a dot is refused."""
    if image.startswith("."):
        raise ValueError(f"a run names an image that is no plain name: {image!r}, which begins with a dot")
    return image


def _joined(frames: Iterable[pandas.DataFrame]) -> pandas.DataFrame:
    """Their rows; without any, the columns of the first."""
    frames = list(frames)
    filled = [frame for frame in frames if len(frame)]
    if filled:
        return pandas.concat(filled, ignore_index=True)
    return frames[0] if frames else pandas.DataFrame()


def _record(options: RunOptions) -> dict[str, Any]:
    explainers = {key: explainer_from(key) for key in options.explainers}
    return {
        "options": options.plain(),
        "explainers": {key: {"name": one.name, "options": one.options} for key, one in explainers.items()},
        "made_with": provenance(options.device),
    }


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def _write(folder: Path, path: Path, contents: bytes | str) -> Path:
    """Writes a file whole. Links are not followed, since a folder from somebody else could lead anywhere."""
    try:
        if path.is_relative_to(folder):
            _make_folders(folder, path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, contents.encode("utf-8", "surrogateescape") if isinstance(contents, str) else contents)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); what was finished before is kept") from None
    return path


def _make_folders(folder: Path, path: Path) -> None:
    """Makes the folders between the run's and the file. The run's own must exist: if not, somebody has deleted it."""
    if not (folder / "run.json").exists() and path.name != "run.json":
        raise ValueError(f"{folder} holds no run any more: it was deleted or moved while the run was at work")
    for place in reversed(path.parents[: len(path.relative_to(folder).parts) - 1]):
        if place.is_symlink():
            raise ValueError(f"{place} is a link, which is not followed; choose another folder")
        place.mkdir(exist_ok=True)
