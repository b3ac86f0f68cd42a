"""Files that carry a checksum of themselves, so that a flipped bit is damage and never another number.

A Parquet file's own page checksums leave its headers and its footer out, and JSON has none at all. So both kinds hold a
BLAKE2b digest of all their bytes, taken with zeros in the digest's own place. Other programs read the files as ever.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pyarrow
import pyarrow.parquet

_DIGITS = 32
_EMPTY = b"blake2b:" + b"0" * _DIGITS
_FILLED = re.compile(rb"blake2b:[0-9a-f]{%d}" % _DIGITS)


class Damaged(ValueError):
    """A file that is not what was written; says how that is seen."""


def _sealed(contents: bytes) -> bytes:
    if contents.count(_EMPTY) != 1 or len(_FILLED.findall(contents)) != 1:
        raise ValueError("a file must not hold the text that stands for its own checksum")
    return contents.replace(_EMPTY, b"blake2b:" + _digest(contents))


def _check(contents: bytes) -> None:
    """Raises Damaged unless the bytes are those that were sealed."""
    found = list(_FILLED.finditer(contents))
    if len(found) != 1:
        raise Damaged("it is cut off, empty, or has no checksum")
    start, end = found[0].span()
    if found[0][0] != b"blake2b:" + _digest(contents[:start] + _EMPTY + contents[end:]):
        raise Damaged("its checksum is another one")


def _digest(contents: bytes) -> bytes:
    return hashlib.blake2b(contents, digest_size=_DIGITS // 2).hexdigest().encode()


def json_with_checksum(record: dict[str, Any]) -> bytes:
    """A record as JSON, its checksum as the last entry."""
    plain = {name: value for name, value in record.items() if name != "checksum"} | {"checksum": _EMPTY.decode()}
    return _sealed((json.dumps(plain, indent=2) + "\n").encode("ascii"))


def checked_json(contents: bytes) -> dict[str, Any]:
    """The record that `json_with_checksum` wrote.

    Raises:
        Damaged: it is another one.
    """
    _check(contents)
    return {name: value for name, value in json.loads(contents).items() if name != "checksum"}


def parquet_of(table: pyarrow.Table) -> bytes:
    """A table as a Parquet file, its pages with checksums of their own, and one of the file among its metadata."""
    sink = pyarrow.BufferOutputStream()
    with pyarrow.parquet.ParquetWriter(sink, table.schema, write_page_checksum=True) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({"checksum": _EMPTY.decode()})
    return _sealed(sink.getvalue().to_pybytes())


def checked_parquet(contents: bytes) -> pyarrow.Table:
    """The table that `parquet_of` wrote.

    Raises:
        Damaged: it is another one, or no table.
    """
    _check(contents)
    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(contents), page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Damaged(str(error).splitlines()[0]) from None
