"""The folder for the Hugging Face kernel hub is complete, and loads without the package: by hand, and by `kernels`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import apem_fast
from apem_fast.ops.load import LIBRARIES

ROOT = Path(__file__).parents[1]
BY_KERNELS = "from kernels import get_local_kernel; operators = get_local_kernel(folder, backend='cpu')"
BY_HAND = """
spec = importlib.util.spec_from_file_location("by_hand", variant / "__init__.py")
operators = sys.modules["by_hand"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(operators)
"""
USED = """
import importlib.util, pathlib, sys, torch
folder = pathlib.Path(sys.argv[1])
variant = next((folder / "build").glob("*-cpu-*"))
{load}
relevance = torch.tensor([[[[0.25, 0.75]]]])
gradient = torch.tensor([[[[-3.0, 5.0]]]])
assert operators.directed_relevance(relevance, gradient).tolist() == [[[[-0.25, 0.75]]]]
assert "apem_fast" not in sys.modules
try:
    operators.directed_relevance(relevance.requires_grad_(), gradient)
except Exception as error:
    assert "import apem_fast" in str(error)
else:
    raise AssertionError("a gradient was dropped in silence")
print(sorted(operators.__all__))
"""


@pytest.mark.skipif(not (ROOT / "apem_fast").exists(), reason="missing: the package's folder, of which it is made")
@pytest.mark.skipif(not (LIBRARIES / "libapem_fast.so").exists(), reason="the operators were not compiled")
@pytest.mark.parametrize(
    "load",
    [pytest.param(BY_HAND, id="by hand"), pytest.param(BY_KERNELS, id="by kernels", marks=pytest.mark.slow)],
)
def test_the_folder_is_loaded_without_the_package(tmp_path, load):
    if load is BY_KERNELS:
        pytest.importorskip("kernels")
    subprocess.run([sys.executable, ROOT / "packaging" / "kernel_hub.py", tmp_path], check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {"build", "build.toml", "benchmarks", "README.md"}
    for variant in (tmp_path / "build").iterdir():
        assert json.loads((variant / "metadata.json").read_text("utf-8"))["name"] == "apem-fast"
    done = subprocess.run(
        [sys.executable, "-c", USED.format(load=load), tmp_path],
        cwd=tmp_path,
        env=_without_the_checkout(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(_functions())


def _functions() -> list[str]:
    return sorted(name for name in apem_fast.ops.__all__ if name != "backend")


def _without_the_checkout() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
