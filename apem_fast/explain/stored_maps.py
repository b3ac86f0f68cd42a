"""Maps that another tool made, read from files."""

from __future__ import annotations

import dataclasses
import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from apem_fast.explain.explainer import Explainer
from apem_fast.explain.grad_cam import enlarged
from apem_fast.extras import extra

_DAMAGED = (zipfile.BadZipFile, pickle.UnpicklingError)
SUFFIXES = (".npy", ".npz", ".pt", ".png")


def plain_name(path: str) -> str:
    """A path without its suffix as a name that is safe in file names on any system."""
    whole = str(PurePosixPath(path).with_suffix("")).replace("/", "-")
    return re.sub(r"[^\w.+-]", "_", whole, flags=re.ASCII).lstrip(".-")


@dataclass(frozen=True)
class StoredMaps(Explainer):
    """Maps from a folder, which has a file of the same name for each image.

    A file is .npy, .npz (with one array), .pt (a tensor) or .png (8 or 16 bits), of shape (h, w), (1, h, w), (C, h, w)
    or (h, w, C), in any scale; of signed values, the absolute value counts. A map covers the part of the photograph
    that the network sees, so it must have the same proportions; another size is resized bilinearly. Files are matched
    by their path within the folder, or by their name alone if that is unique.

    Args:
        folder: where the files are.
        title: the maps' name in tables; the folder's name if empty.

    Raises:
        ValueError: no folder or no maps in it; on a call, no file for an image, several, or one that is no map of it.
    """

    folder: str
    title: str = ""
    names: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """The names of the images to explain; `for_images` sets them."""
    needs_model: ClassVar[bool] = False
    _files: ClassVar[tuple[str, ...]] = ()  # listed once for each object

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(Path(self.folder).absolute()))
        object.__setattr__(self, "_files", _files(self.folder))
        if not self._files:
            raise ValueError(
                f"maps: {self.folder} must be a folder with {', '.join(suffix[1:] for suffix in SUFFIXES)} files "
                "(got none)"
            )

    @property
    def name(self) -> str:  # type: ignore[override]  # an object's own: a class variable of the other methods
        return self.title or Path(self.folder).name

    @property
    def options(self) -> dict[str, Any]:
        return {"folder": self.folder, "title": self.title}

    def for_images(self, names: Sequence[str]) -> StoredMaps:
        return dataclasses.replace(self, names=tuple(names))

    def images_at_once(self, device: torch.device) -> int:
        return max(1, len(self.names))

    def attribute(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        if len(self.names) != len(images):
            raise ValueError(f"{self.name}: maps are looked up by the images' names (got {len(images)} images without)")
        return torch.cat([self._map(name, images[n : n + 1]) for n, name in enumerate(self.names)])

    def has(self, name: str) -> bool:
        """Whether there is a map of the image of that name."""
        return len(self._found(name)) == 1

    def _found(self, name: str) -> list[str]:
        files = self._files
        whole = [file for file in files if plain_name(file) == name]
        return whole or [file for file in files if name.endswith("-" + plain_name(PurePosixPath(file).name))]

    def _map(self, name: str, image: Tensor) -> Tensor:
        found = self._found(name)
        if len(found) != 1:
            several = f"{found[0]} and {found[1]}" if found else "none"
            raise ValueError(f"{self.name}: {self.folder} must hold one map of {name} (got {several})")
        path = Path(self.folder, found[0])
        return map_of_image(_read(path), image, str(path))


def map_of_image(values: np.ndarray, image: Tensor, what: str) -> Tensor:
    """One map as an attribution (1, 1 or C, H, W) of one image (1, C, H, W).

    Args:
        values: (h, w), (1, h, w), (C, h, w) or (h, w, C), float64; resized if its size is not the image's.
        what: its name in errors.

    Raises:
        ValueError: another shape, or other proportions than the image's.
    """
    values = _with_channels_first(values, what, image.shape[1])
    height, width = image.shape[2:]
    if abs(values.shape[1] * width - values.shape[2] * height) > max(height, width):
        raise ValueError(
            f"maps: {what} must have the shape of what the network sees, {height} by {width} or any other size of the "
            f"same proportions (got {values.shape[1]} by {values.shape[2]})"
        )
    return enlarged(torch.from_numpy(values)[None].to(image), image)


def _files(folder: str) -> tuple[str, ...]:
    """The relative paths of all map files in a folder, with slashes."""
    root = Path(folder)
    files = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return tuple(sorted(path.relative_to(root).as_posix() for path in files))


def _read(path: Path) -> np.ndarray:
    with extra("explain", "a map in a picture"):
        from PIL import Image
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as picture:
                values = np.asarray(picture if picture.mode[0] in "LIFR" else picture.convert("RGB"))
            values = values[..., :3] if values.ndim == 3 and values.shape[-1] == 4 else values  # without its alpha
        elif path.suffix.lower() == ".pt":
            values = torch.load(path, map_location="cpu", weights_only=True).detach().double().numpy()
        else:
            values = np.load(path, allow_pickle=False)
            if not isinstance(values, np.ndarray):
                (values,) = (values[key] for key in values.files)
    except (OSError, ValueError, RuntimeError, AttributeError, EOFError, KeyError, *_DAMAGED) as error:
        raise ValueError(f"maps: {path} cannot be read as one map ({str(error).splitlines()[0]})") from None
    if values.dtype.kind not in "fiub":
        raise ValueError(f"maps: {path} must hold numbers (got {values.dtype})")
    return values.astype(np.float64)


def _with_channels_first(values: np.ndarray, what: str, channels: int) -> np.ndarray:
    while values.ndim > 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim == 2:
        values = values[None]
    if values.ndim == 3 and values.shape[0] not in (1, channels) and values.shape[2] in (1, channels):
        values = values.transpose(2, 0, 1)
    if values.ndim != 3 or values.shape[0] not in (1, channels):
        raise ValueError(
            f"maps: {what} must have shape (h, w), (1, h, w), ({channels}, h, w) or (h, w, {channels}) "
            f"(got {values.shape})"
        )
    return np.ascontiguousarray(values)
