"""The CUDA kernels and their bindings on CPU tensors, by the emulator of CUDA's execution model (csrc/emulator/).

`emulated.NAME(...)` takes what `apem_fast.ops.NAME(...)` takes. The first use compiles; objects are kept by a hash of
all that goes into them.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import apem_fast.ops  # noqa: F401  (registers the operators whose schemas are repeated)
from apem_fast.ops.load import OPERATORS

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build" / "emulator"
COMPILER = os.environ.get("CXX", "g++")
FLAGS = [
    "-O1",
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-pthread",
    "-DAPEM_FAST_EMULATOR",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
]

_module: ModuleType | None = None


def why_not() -> str | None:
    """The reason why nothing can be emulated here, if there is one."""
    if shutil.which(COMPILER.split()[0]) is None:
        return "no C++ compiler"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file `name` of the cache; several processes may want it at once."""
    path = CACHE / name
    if not path.exists():
        unfinished = path.with_name(f"{name}.{os.getpid()}")
        make(unfinished)
        unfinished.replace(path)
    return path


def _build() -> Path:
    import pybind11

    torch_root = Path(torch.__file__).parent
    # pybind11 of its own first: torch 2.11's copy of it refuses the stable ABI.
    includes = [pybind11.get_include(), torch_root / "include", sysconfig.get_paths()["include"]]
    command = [*COMPILER.split(), *FLAGS, *(f"-I{include}" for include in includes)]
    headers = [
        p
        for pattern in ("csrc/*.h", "csrc/cuda/*.h", "csrc/cuda/*.cuh", "csrc/emulator/*.h")
        for p in sorted(ROOT.glob(pattern))
    ]
    shared = _hash(torch.__version__, *command, *(header.read_bytes() for header in headers))
    CACHE.mkdir(parents=True, exist_ok=True)

    def run(arguments: list[object]) -> None:
        done = subprocess.run([str(argument) for argument in arguments], check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the emulator does not compile:\n{done.stderr[-4000:]}")

    def compiled(source: Path) -> Path:
        name = f"{source.stem}-{_hash(shared, source.read_bytes())}.o"
        return _cached(name, lambda to: run([*command, "-x", "c++", "-c", source, "-o", to]))

    sources = [ROOT / "csrc/emulator/module.cpp", *sorted(ROOT.glob("csrc/cuda/*.cu"))]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        objects = list(pool.map(compiled, sources))
    libraries = [f"-L{torch_root / 'lib'}", f"-Wl,-rpath,{torch_root / 'lib'}", "-ltorch_cpu", "-pthread"]
    name = f"apem_fast_emulator-{_hash(*(o.name for o in objects))}.so"
    return _cached(name, lambda to: run([*COMPILER.split(), "-shared", *objects, *libraries, "-o", to]))


def load() -> ModuleType:
    """The compiled module; `torch.ops.apem_fast_emulated.*` exists afterwards."""
    global _module
    if _module is None:
        library = torch.library.Library("apem_fast_emulated", "DEF")
        for name in OPERATORS:
            schema = str(getattr(torch.ops.apem_fast, name).default._schema)
            library.define(schema.removeprefix("apem_fast::"))
        spec = importlib.util.spec_from_file_location("apem_fast_emulator", _build())
        _module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(_module)
        _module.library = library  # the definitions last as long as this object
    return _module


@contextlib.contextmanager
def grid_limit(x: int, yz: int) -> Iterator[None]:
    """Grids of at most so many blocks in each dimension, as on a device with less room."""
    module = load()
    before = module.grid_limit()
    module.set_grid_limit(x, yz)
    try:
        yield
    finally:
        module.set_grid_limit(*before)


def _operator(name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        load()
        return getattr(torch.ops.apem_fast_emulated, name)(*arguments, **options)

    call.__name__ = name
    return call


directed_relevance = _operator("directed_relevance")
directed_relevance_backward = _operator("directed_relevance_backward")
perturb = _operator("perturb")
perturb_backward = _operator("perturb_backward")
perturb_probes = _operator("perturb_probes")
perturb_probes_into = _operator("perturb_probes_into")
label_margin = _operator("label_margin")
label_margin_backward = _operator("label_margin_backward")
probe_answers = _operator("probe_answers")
first_flip = _operator("first_flip")
zero_levels = _operator("zero_levels")
relevance_map = _operator("relevance_map")
attack_penalty = _operator("attack_penalty")
attack_penalty_backward = _operator("attack_penalty_backward")
attack_step = _operator("attack_step")
saliency_map = _operator("saliency_map")
