"""Kept photographs and maps of a run, as small pictures in a section."""

from __future__ import annotations

from PIL import Image, ImageChops

from apem_fast.experiment.report.section import Picture
from apem_fast.experiment.run.pictures import coloured, kept_picture, small_picture
from apem_fast.experiment.run.store import RunStore

SIDE = 160


def photograph_picture(store: RunStore, image: str) -> Picture | None:
    """A photograph with its name; None if the run kept no picture of it."""
    path = store.photograph(image)
    return Picture(small_picture(kept_picture(path).convert("RGB"), SIDE, quality=85), image) if path.exists() else None


def map_picture(
    store: RunStore, image: str, explainer: str, stage: str, caption: str, *, irrelevance: bool = False
) -> Picture | None:
    """A map, brighter for more relevant, or its irrelevance 1 - R; None if the run kept no picture of it."""
    path = store.map(image, explainer, stage)
    if not path.exists():
        return None
    picture: Image.Image = kept_picture(path)
    return Picture(small_picture(coloured(ImageChops.invert(picture) if irrelevance else picture), SIDE), caption)
