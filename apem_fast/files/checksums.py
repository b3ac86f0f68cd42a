"""Files with a checksum of their own content, so that a flipped bit is seen as damage and never read as a number.

A Parquet file's page checksums leave out its headers and footer, JSON has none, and torch.load does not check those
that torch.save writes. So all three kinds of file hold a BLAKE2b digest of all their bytes, computed with zeros in
place of the digest. Other programs can still read the files.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

_DIGITS = 32
_EMPTY = b"blake2b:" + b"0" * _DIGITS
_FILLED = re.compile(rb"blake2b:[0-9a-f]{%d}" % _DIGITS)


class Damaged(ValueError):
    """A file whose content is not what was written; the message says how that is known."""


def _sealed(contents: bytes) -> bytes:
    if contents.count(_EMPTY) != 1 or len(_FILLED.findall(contents)) != 1:
        raise ValueError("a file must not hold the text that stands for its own checksum")
    return contents.replace(_EMPTY, b"blake2b:" + _digest(contents))


def _check(contents: bytes) -> None:
    """Raises Damaged unless the bytes match their checksum."""
    found = list(_FILLED.finditer(contents))
    if len(found) != 1:
        raise Damaged("it is cut off, empty, or has no checksum")
    start, end = found[0].span()
    if found[0][0] != b"blake2b:" + _digest(contents[:start] + _EMPTY + contents[end:]):
        raise Damaged("its checksum is another one")


def _digest(contents: bytes) -> bytes:
    return hashlib.blake2b(contents, digest_size=_DIGITS // 2).hexdigest().encode()


def json_with_checksum(record: dict[str, Any]) -> bytes:
    """A record as JSON whose last entry is its checksum."""
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
    """A table as a Parquet file, with a checksum of each page, and one of the whole file in its metadata."""
    import pyarrow
    import pyarrow.parquet

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
    import pyarrow
    import pyarrow.parquet

    _check(contents)
    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(contents), page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise Damaged(str(error).splitlines()[0]) from None


_END_OF_ZIP = 22  # bytes of the last record of a zip file, which ends with the length of the file's comment


def tensors_with_checksum(content: dict[str, Any]) -> bytes:
    """The file that torch.save writes, which is a zip file, with the checksum as the zip file's comment."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    written = buffer.getvalue()
    if written[-_END_OF_ZIP : 4 - _END_OF_ZIP] != b"PK\5\6" or written[-2:] != b"\0\0":
        raise RuntimeError("torch.save did not write a zip file without a comment, in which a checksum would have room")
    return _sealed(written[:-2] + len(_EMPTY).to_bytes(2, "little") + _EMPTY)


def checked_tensors(contents: bytes) -> dict[str, Any]:
    """The content that `tensors_with_checksum` wrote, on the CPU. No code in the file is run.

    Raises:
        Damaged: it is another one, or holds more than tensors and plain values.
    """
    import torch

    _check(contents)
    try:
        content = torch.load(io.BytesIO(contents), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Damaged(reason) from None
    if not isinstance(content, dict):
        raise Damaged(f"it holds a {type(content).__name__}")
    return content
