"""The compiled libraries: loaded alone, twice in one process, or not at all; what they lack is refused or said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from apem_fast.ops import load

LIBRARY = load.LIBRARIES / "libapem_fast.so"

pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="nothing was compiled")

ALONE = """
import torch
from torch.autograd import forward_ad
torch.ops.load_library(LIBRARY)
ops = torch.ops.apem_fast
x, d, e = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([1.0, 2.0])
leaf = x.clone().requires_grad_()

def refused(sentence, call):
    try:
        call()
    except RuntimeError as error:
        assert str(error).startswith(sentence), error
    else:
        raise AssertionError(f"not refused: {sentence}")

def of_dual():
    with forward_ad.dual_level():
        ops.perturb(forward_ad.make_dual(x, d), d, e)

served = ops.perturb(x, d, e)
assert torch.equal(served[:, 1], x + 2 * d)
with torch.no_grad():
    assert torch.equal(ops.perturb(leaf, d, e), served)
with torch.inference_mode():
    assert torch.equal(ops.perturb(x * 1, d, e), served)
alone = "the library alone has no derivatives; import apem_fast"
refused(f"perturb: {alone}", lambda: ops.perturb(leaf, d, e))
refused(f"perturb: {alone}", lambda: ops.perturb(x, leaf * 2, e))
refused(f"perturb: {alone}", of_dual)
refused(f"relevance_map: {alone}", lambda: ops.relevance_map(x, leaf))
row, one = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.float64)
def written_into(out):
    ops.perturb_probes_into(out, x, x[:, :1], d, one, row, row, row > 0, one, 0 * one)
refused(f"perturb_probes_into: {alone}", lambda: written_into(leaf * 2))
out = torch.zeros_like(x)
written_into(out)
assert out._version == 1 and torch.equal(out[0], x[0] + torch.where(x[0, :1] <= 0, 0, x[0, :1]) * d[0].sign())
ops.perturb_probes_into(*(a.to("meta") for a in (out, x, x[:, :1], d, one, row, row, row > 0, one, one)))
transformed = "perturb: the library alone does not serve torch.func"
refused(transformed, lambda: torch.func.jvp(lambda x: ops.perturb(x, d, e), (x,), (d,)))
refused(transformed, lambda: torch.func.grad(lambda x: ops.perturb(x, d, e).sum())(x))
refused(transformed, lambda: torch.vmap(lambda x: ops.perturb(x, d, e))(torch.stack([x, x])))
assert ops.perturb(x.to("meta"), d.to("meta"), e.to("meta")).shape == served.shape
refused("perturb: epsilon must have shape (K,) or (N, K) (got ())",
        lambda: ops.perturb(x.to("meta"), d.to("meta"), e[0].to("meta")))
compiled = torch.compile(lambda x: ops.perturb(x, d, e) * 2, fullgraph=True, backend="aot_eager")
assert torch.equal(compiled(x), served * 2)

# Python's package, come later, takes the place of all this.
import apem_fast
ops.perturb(leaf, d, e).sum().backward()
assert leaf.grad.eq(2).all()
assert torch.func.jvp(lambda x: ops.perturb(x, d, e), (x,), (d,))[1].eq(d[:, None]).all()
print("served")
"""

TWICE = """
import warnings
warnings.simplefilter("error", RuntimeWarning)
import torch
FIRST
SECOND
import apem_fast.ops
x = torch.ones(1, 1, 1, 1, requires_grad=True)
apem_fast.ops.perturb(x, x.detach(), torch.tensor([2.0])).sum().backward()
assert apem_fast.ops.backend() == "cpu" and x.grad.item() == 1
print("served")
"""


def run(program: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_alone_it_is_right_or_refuses() -> None:
    assert run(ALONE.replace("LIBRARY", repr(str(LIBRARY)))) == "served\n"


@pytest.mark.parametrize("order", ["package first", "another first"])
def test_two_libraries_in_one_process(order: str, tmp_path: Path) -> None:
    """As a C++ program has them that holds a Python with the package."""
    another = shutil.copy(LIBRARY, tmp_path / "libapem_fast_of_a_program.so")
    lines = ["import apem_fast.ops", f"torch.ops.load_library({str(another)!r})"]
    first, second = lines if order == "package first" else reversed(lines)
    assert run(TWICE.replace("FIRST", first).replace("SECOND", second)) == "served\n"


@pytest.fixture
def not_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of libraries of a package that has loaded none yet."""
    monkeypatch.setattr(load, "LIBRARIES", tmp_path)
    monkeypatch.setattr(load, "_exists", lambda name: False)
    monkeypatch.setattr(load, "_has_kernel", lambda key: False)
    return tmp_path


def test_a_library_that_cannot_be_loaded_is_named(not_loaded: Path) -> None:
    library = not_loaded / "libapem_fast.so"
    library.write_bytes(b"for another system")
    with pytest.warns(RuntimeWarning, match=r"^apem_fast: the compiled operators could not be loaded, .*libapem_fast"):
        assert not load._load_native()


def test_a_missing_library_is_said(not_loaded: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"^apem_fast: the compiled operators are missing, .*install a wheel"):
        assert not load._load_native()


def test_cuda_operators_of_another_version_are_not_loaded(not_loaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (not_loaded / "libapem_fast_cuda12.so").write_bytes(b"")
    monkeypatch.setattr(torch.version, "cuda", "14.1")
    assert load._load_cuda() == "the operators were compiled without CUDA 14, only with CUDA 12"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert load._load_cuda() == "this torch was built without CUDA"


def test_cuda_operators_that_cannot_be_loaded_are_named(not_loaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (not_loaded / "libapem_fast_cuda12.so").write_bytes(b"for another system")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.warns(RuntimeWarning, match=r"^apem_fast: the CUDA operators could not be loaded, .*_cuda12"):
        assert "could not be loaded" in load._load_cuda()


def test_the_libraries_do_not_know_python() -> None:
    """So that one serves every Python, free-threaded ones too."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("not installed: nm")
    for library in load.LIBRARIES.glob("*.so"):
        said = subprocess.run([nm, "-D", library], check=True, capture_output=True, text=True).stdout
        assert "apem_fast_operators_version" in said or "cuda" in library.name
        assert not [line for line in said.splitlines() if line.split()[-1].lstrip("_").startswith("Py")]
