"""Runs a case on the CPU and on a pretended GPU, and demands equal results in the right places."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pretended import GPU, PretendedGPU
from torch import Tensor, nn

Case = Callable[[str], Any]
"""What is done on a device."""
Where = Callable[[str], bool]
"""Whether the part of a result with this path is to be on the device."""

Waits = Counter[tuple[str, str]]


def nowhere(path: str) -> bool:
    return False


def everywhere(path: str) -> bool:
    return True


def nearly_equal(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=1e-3, atol=1e-5)


def check(case: Case, on_gpu: Where, same: Callable[[Tensor, Tensor], bool] = torch.equal) -> Waits:
    """The same on both devices; and with the GPU as torch's default device, where tensors are made that name none."""
    expected = case("cpu")
    with PretendedGPU() as gpu:
        actual = case("cuda")
        waits = gpu.waits.copy()
        assert_same(actual, expected, on_gpu, same)
    with PretendedGPU(), torch.device("cuda"):
        assert_same(case("cuda"), expected, on_gpu, same)
    return waits


def assert_same(actual: Any, expected: Any, on_gpu: Where, same: Callable[[Tensor, Tensor], bool]) -> None:
    there, here = _leaves(actual), _leaves(expected)
    assert list(there) == list(here)
    for path, value in here.items():
        other = there[path]
        if isinstance(value, Tensor):
            assert (other.device == GPU) == on_gpu(path), f"{path} is on {other.device}"
            value, other = value.cpu(), other.cpu()
        if path.endswith("probes"):  # depends on the batch size, which is another one on a GPU
            continue
        if isinstance(value, Tensor):
            assert torch.equal(other.isnan(), value.isnan()), path
            exactly = nearly_equal if path.endswith("margin") else same  # float32 margins depend on the batch
            assert exactly(other.nan_to_num(), value.nan_to_num()), path
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(other, value, err_msg=path)
        elif isinstance(value, (int, float, str, bool)):
            assert other == value or value != value, path


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The tensors, arrays and numbers of a result, by their path in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {path: value}
    return {inner: leaf for key, part in items for inner, leaf in _leaves(part, f"{path}.{key}").items()}


def made_on_cpu(make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Test data are drawn on the CPU whatever torch's default device is."""
    with torch.device("cpu"):
        return make(*arguments, **options)
