"""Reads the user's own images: single files, folders of UTKFace, and folders with a table of attributes."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable
from pathlib import Path

import numpy
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from apem_fast.files.picture_size import most_pixels, require_size
from apem_fast.siamese.pairs import RankedImages

__all__ = ["image_file", "mask_file", "table_of_images", "utkface"]


def image_file(path: str | Path, size: tuple[int, int] | None = None, channels: int = 3) -> Tensor:
    """An image (C, H, W), float32 in [0, 1], resized bilinearly to `size` (height, width) if given.

    Args:
        channels: 3 for RGB, 1 for grey.
    """
    return _read(Path(path), size, channels).to(torch.float32) / 255


def mask_file(path: str | Path, size: tuple[int, int]) -> Tensor:
    """A mask (H, W) bool at `size` (height, width): True where the grey image is brighter than half."""
    mask = _read(Path(path), None, 1)[0]
    if tuple(mask.shape) != tuple(size):
        grey = Image.fromarray(mask.numpy()).resize((size[1], size[0]), Image.Resampling.NEAREST)
        mask = torch.from_numpy(numpy.array(grey))
    return mask > 127


def _read(path: Path, size: tuple[int, int] | None, channels: int) -> Tensor:
    """(C, H, W) uint8."""
    try:
        most_pixels()  # which tells Pillow of it
        with Image.open(path) as file:
            require_size(file)
            image = file.convert("RGB" if channels == 3 else "L")
            if size is not None and image.size != (size[1], size[0]):
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    except FileNotFoundError:
        raise ValueError(f"image: path must be a file that exists (got {path})") from None
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"image: path must be an image (got {path}: {error})") from None
    array = torch.from_numpy(numpy.array(image))
    return array[None] if channels == 1 else array.permute(2, 0, 1).contiguous()


def utkface(folder: str | Path, pixels: int = 112) -> RankedImages:
    """A folder of UTKFace images, `[age]_[gender]_[race]_[date&time].jpg`, ordered by age in [0, 116] (P3 equation 37).

    Files without an age in that range in their names, and files that are no images, are listed in `skipped`.

    Returns:
        uint8 images (N, 3, pixels, pixels), resized if their size differs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"utkface: folder must be a folder of images (got {folder})")
    rows = [(path, _age(path)) for path in sorted(p for p in folder.rglob("*") if p.is_file())]
    data = _gather(folder, rows, pixels, 3, (0, 116), "age")
    if data is None:
        raise ValueError(f"utkface: folder must hold images named age_gender_race_date.jpg (got none in {folder})")
    return data


def _age(path: Path) -> float:
    parts = path.name.split("_")
    age = int(parts[0]) if len(parts) >= 4 and parts[0].isascii() and parts[0].isdigit() else -1
    return age if 0 <= age <= 116 else math.nan


def table_of_images(
    folder: str | Path,
    table: str | Path,
    *,
    pixels: int = 112,
    channels: int = 3,
    low: float | None = None,
    high: float | None = None,
) -> RankedImages:
    """The images that a CSV table names, with the attribute that it gives them.

    Args:
        folder: the folder that the names in the table are relative to.
        table: CSV with a heading. The first column has files, the second numbers; its heading names the attribute.
        pixels, channels: of the network's images: the side of a square, and 3 channels for RGB or 1 for grey.
        low, high: the attribute's range; by default the least and the greatest in the table.

    Returns:
        uint8 images (N, channels, pixels, pixels); rows without a number or a readable image are in `skipped`.
    """
    folder, table = Path(folder), Path(table)
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            heading, *lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"table_of_images: table must be a CSV file with a heading (got {table}: {error})") from None
    if len(heading) < 2:
        raise ValueError(f"table_of_images: table must have two columns, file and attribute (got {','.join(heading)})")
    rows = [(folder / line[0], _number(line[1]) if len(line) > 1 else math.nan) for line in lines]
    numbers = [value for _, value in rows if not math.isnan(value)]
    if not numbers:
        raise ValueError(f"table_of_images: table must give numbers in its second column (got none in {table})")
    span = (min(numbers) if low is None else low, max(numbers) if high is None else high)
    if not span[0] < span[1]:
        raise ValueError(f"table_of_images: {heading[1]} must differ between images (got {span[0]:g} for all of them)")
    data = _gather(folder, rows, pixels, channels, span, heading[1])
    if data is None:
        raise ValueError(f"table_of_images: table must name images in {folder} (got none that can be read)")
    return data


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _gather(
    folder: Path,
    rows: Iterable[tuple[Path, float]],
    pixels: int,
    channels: int,
    span: tuple[float, float],
    attribute: str,
) -> RankedImages | None:
    images, values, names, digests, skipped = [], [], [], [], []
    for path, value in rows:
        name = str(path.relative_to(folder))
        try:
            if math.isnan(value) or not span[0] <= value <= span[1]:
                raise ValueError("no attribute")
            images.append(_read(path, (pixels, pixels), channels))
        except ValueError:
            skipped.append(name)
            continue
        values.append(value)
        names.append(name)
        digests.append(hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest())
    if not images:
        return None
    return RankedImages(
        torch.stack(images),
        torch.tensor(values, dtype=torch.float32),
        *span,
        attribute,
        tuple(skipped),
        tuple(names),
        tuple(digests),
    )
