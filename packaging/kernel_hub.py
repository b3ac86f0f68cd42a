"""Lays the compiled operators out as a repository of the Hugging Face kernel hub: `make kernel-hub`.

    python packaging/kernel_hub.py FOLDER

One variant for the CPU, and one for each CUDA version that was built, on libtorch's stable ABI: every torch from 2.11
on loads it. A variant is a package of the documented functions of `apem_fast.ops` beside the library. Operators stay
`torch.ops.apem_fast.*`: whoever loads them first in a process serves, this folder or the package, in either order.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ROOT / "apem_fast" / "lib"
FUNCTIONS = ROOT / "apem_fast" / "ops" / "functions.py"
PAPERS = ROOT / "apem_fast" / "papers.py"  # numbers that are defaults of these functions

INIT = '''"""The operators of apem_fast by themselves: no derivatives, for which there is the package of this name."""

from pathlib import Path

import torch

if not torch._C._jit_get_schemas_for_operator("apem_fast::perturb_probes"):
    for library in {libraries}:
        torch.ops.load_library(Path(__file__).parent / library)

from .functions import {names}

__all__ = {names_listed}
'''

BUILD = """[general]
name = "apem-fast"
license = "MIT"
backends = {backends}

[torch]
stable-abi = "2.11"
"""

CARD = """---
license: MIT
tags:
  - kernels
---
# apem_fast

Fused operators that measure how reliable a saliency map is, on libtorch's stable ABI.

```python
import torch
from kernels import get_local_kernel

operators = get_local_kernel("FOLDER", backend="cpu")
direction = operators.directed_relevance(torch.rand(2, 1, 8, 8), torch.randn(2, 3, 8, 8))
```

`benchmarks/benchmark.py` compares operators with plain PyTorch.
"""

BENCHMARK = '''"""Operators against plain PyTorch, on the CPU: `python benchmarks/benchmark.py`."""

import sys
from pathlib import Path

import torch
from kernels import get_local_kernel
from torch.utils.benchmark import Timer

operators = get_local_kernel(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]), backend="cpu")
relevance, gradient = torch.rand(8, 1, 224, 224), torch.randn(8, 3, 224, 224)
logits, labels = torch.randn(256, 1000), torch.randint(1000, (256,))


def direction():
    wide = relevance.expand_as(gradient)
    return wide / wide.abs().sum((1, 2, 3), keepdim=True) * gradient.sign()


def margin():
    chosen = logits.gather(1, labels[:, None])[:, 0]
    return chosen - logits.scatter(1, labels[:, None], float("-inf")).amax(1)


for name, ours, plain in (
    ("directed_relevance", lambda: operators.directed_relevance(relevance, gradient), direction),
    ("label_margin", lambda: operators.label_margin(logits, labels)[0], margin),
):
    torch.testing.assert_close(ours(), plain())
    fast, slow = (Timer("f()", globals={"f": f}).blocked_autorange(min_run_time=0.5).median for f in (ours, plain))
    print(f"{name}: {fast * 1e6:.0f} us, {slow / fast:.1f} times as fast as plain PyTorch")
'''


def version_of(major: str) -> str:
    """The CUDA version that torch was built with, as variants are called: cu130."""
    import torch

    built = torch.version.cuda or ""
    return "cu" + (built.replace(".", "") if built.split(".")[0] == major else f"{major}0")


def variants() -> dict[str, list[str]]:
    """By backend ("cpu", "cu130"), the libraries that it loads, the first one first."""
    if not (LIBRARIES / "libapem_fast.so").exists():
        sys.exit("kernel_hub: the compiled operators are missing: make setup, with a C++ compiler")
    found = {"cpu": ["libapem_fast.so"]}
    for library in sorted(LIBRARIES.glob("libapem_fast_cuda*.so")):
        found[version_of(re.search(r"cuda(\d+)", library.stem)[1])] = ["libapem_fast.so", library.name]
    return found


def main(folder: Path) -> None:
    source = FUNCTIONS.read_text("utf-8")
    source = re.sub(r"^from apem_fast\.ops import load.*\n", "", source, flags=re.MULTILINE)
    source = source.replace("from apem_fast.papers import", "from .papers import")
    if re.search(r"\b(import|from) apem_fast", source):
        sys.exit("kernel_hub: apem_fast/ops/functions.py must need nothing else of the package than papers.py")
    names = sorted(re.findall(r"^def ([a-z]\w*)\(", source, re.MULTILINE))
    version = re.search(r'__version__ = "(.+)"', (ROOT / "apem_fast" / "__init__.py").read_text("utf-8"))[1]
    shutil.rmtree(folder / "build", ignore_errors=True)
    for backend, libraries in variants().items():
        arch = f"torch-stable-abi211-{backend}-{platform.machine()}-linux"
        variant = folder / "build" / arch
        variant.mkdir(parents=True)
        for library in libraries:
            shutil.copy2(LIBRARIES / library, variant)
        init = INIT.format(libraries=tuple(libraries), names=", ".join(names), names_listed=names)
        (variant / "__init__.py").write_text(init, "utf-8")
        (variant / "functions.py").write_text(source, "utf-8")
        shutil.copy(PAPERS, variant)
        kind = "cpu" if backend == "cpu" else "cuda"
        metadata = {
            "id": f"apem_fast_{kind}_{version.replace('.', '_')}",
            "name": "apem-fast",
            "version": 1,
            "license": "MIT",
            "python-depends": [],
            "backend": {"type": kind},
        }
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n", "utf-8")
        print(variant)
    backends = sorted({"cpu" if backend == "cpu" else "cuda" for backend in variants()})
    (folder / "build.toml").write_text(BUILD.format(backends=json.dumps(backends)), "utf-8")
    (folder / "README.md").write_text(CARD, "utf-8")
    (folder / "benchmarks").mkdir(exist_ok=True)
    (folder / "benchmarks" / "benchmark.py").write_text(BENCHMARK, "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
