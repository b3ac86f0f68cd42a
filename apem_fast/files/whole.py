"""Files that exist whole or not at all: each is written under another name, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_of(path: Path, *, own: bool = False) -> Path:
    """The hidden path beside a file, under which it is written before it is renamed.

    Args:
        path: of the file.
        own: a name that only this process uses, for files that several processes may write at once. Without it the
            path is always the same, so that the next write replaces what a killed process left there.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.part" if own else f".{path.name}.part")


@contextmanager
def written_whole(path: Path, *, own: bool = False) -> Iterator[Path]:
    """A path to write to within the block. A reader of `path` sees the old file, the new one or none, never a part.

    Whatever already has the path to write to is removed first, also a link, so that no link is followed. After an
    error nothing is left there.
    """
    part = part_of(path, own=own)
    part.unlink(missing_ok=True)
    try:
        yield part
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(path: Path, contents: bytes) -> None:
    """Writes a file whole: its content is on the disk before it gets its name. No link is followed.

    Raises:
        ValueError: it cannot be written.
    """
    try:
        with written_whole(path) as part, part.open("xb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror}); what was finished before is kept") from None
