"""The names of ImageNet's 1,000 classes, in the order that networks use.

torchvision has them all. It is not a requirement, because each torchvision needs one version of torch, and pip would
replace the installed torch. Without it the classes of the bundled photographs have names, and the others numbers.
"""

from __future__ import annotations

from apem_fast.callers import warn

OF_PHOTOGRAPHS = {
    281: "tabby",
    282: "tiger cat",
    285: "Egyptian cat",
    518: "crash helmet",
    652: "military uniform",
    657: "missile",
    665: "moped",
    670: "motor scooter",
    698: "palace",
    744: "projectile",
    812: "space shuttle",
    872: "tripod",
    967: "espresso",
    968: "cup",
    975: "lakeside",
    985: "daisy",
}
"""The classes of the bundled photographs, see photographs.py."""

NEEDED = "the torchvision that goes with this torch (pip install torchvision==0.26 beside torch 2.11, 0.29 beside 2.14)"


def imagenet_categories() -> tuple[str, ...]:
    """The names, from torchvision.

    Warns:
        UserWarning: it is not installed, so that most of them are "class 7" and the like.
    """
    try:
        from torchvision.models import ResNet18_Weights
    except ImportError:
        warn(f"most of ImageNet's classes are numbers without their names; they come with {NEEDED}")
        return tuple(OF_PHOTOGRAPHS.get(index, f"class {index}") for index in range(1000))
    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])
