"""Files that are there whole or not at all: written beside their place, then renamed into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_of(path: Path, *, own: bool = False) -> Path:
    """Where a file is written before it is renamed: beside it, hidden.

    Args:
        path: of the file.
        own: a name of this process's own, for files that several processes may write at once. Else it is always the
            same, so that what a killed process left there is overwritten, not left behind.
    """
    return path.with_name(f".{path.name}.{os.getpid()}.part" if own else f".{path.name}.part")


@contextmanager
def written_whole(path: Path, *, own: bool = False) -> Iterator[Path]:
    """Gives the path to write to; a reader sees the old file, the new file, or none, never a part.

    What lay there is removed first, a link too, which so leads nowhere; after an error nothing is left.
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
    """Writes a file whole; what it holds is on the disk before it has its name. No link is followed.

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
