"""What the compiler made of the CUDA kernels, for sm_80 and sm_90, read from the machine code: nothing spilled, no
local memory, and accesses of 128 bits wherever a kernel is meant to use them. Needs no GPU.

Read from the extension if it was built with CUDA for both, else from code compiled for this purpose.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch

from apem_fast.ops.load import LIBRARIES

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build" / "cuda-static"
ARCHITECTURES = ("sm_80", "sm_90")

# Kernels that write one value for a row or a chunk, not packs.
WITHOUT_VECTOR_STORES = (
    "map_norm",
    "label_margin_kernel",
    "probe_answers",
    "first_flip",
    "attack_penalty_kernel",
    "gather_kernel",
    "select_kernel",
    "product_kernel",
)
# Kernels that take their values one by one wherever they lie.
WITHOUT_VECTORS = ("sample_kernel",)
# Kernels with many sums, neighbours or channels in registers at once: bound to half as many threads as the others.
OF_128_REGISTERS = (
    "perturb_backward_kernel",
    "relevance_map_kernel",
    "select_kernel",
    "attack_penalty_kernel",
    "attack_penalty_backward_kernel",
    "attack_step_kernel",
    "perturb_probes_kernel",
    "label_margin_kernel",
    "label_margin_backward_kernel",
    "probe_answers_kernel",
    "pixel_distance_kernel",
)
KERNELS = (
    "directed_relevance_kernel",
    "directed_relevance_backward_kernel",
    "map_norm_kernel",
    "channel_sums_kernel",
    "perturb_kernel",
    "perturb_backward_kernel",
    "perturb_probes_kernel",
    "label_margin_kernel",
    "label_margin_backward_kernel",
    "probe_answers_kernel",
    "first_flip_kernel",
    "relevance_map_kernel",
    "sample_kernel",
    "gather_kernel",
    "select_kernel",
    "product_kernel",
    "rescale_kernel",
    "zero_levels_kernel",
    "attack_penalty_kernel",
    "attack_penalty_backward_kernel",
    "attack_step_kernel",
    "pixel_distance_kernel",
    "saliency_map_kernel",
)


@dataclass(frozen=True)
class Kernel:
    """One instantiation for one architecture."""

    name: str  # mangled
    architecture: str
    registers: int
    stack_bytes: int
    local_bytes: int
    instructions: frozenset[str]

    def __str__(self) -> str:
        return f"{self.name} for {self.architecture}"

    def is_of(self, kernel: str) -> bool:
        return f"{len(kernel)}{kernel}" in self.name  # as names are mangled

    @property
    def uses_vectors(self) -> bool:
        return re.search(r"6AccessI.*?Li\d+ELb1EE", self.name) is not None

    @property
    def loads_packs_of_floats(self) -> bool:
        """Not where the map is read pixel by pixel (interleaved channels) and the rest of the input is int8 signs."""
        interleaved, signs = "4WalkE1E" in self.name, re.search(r"aEEv", self.name) is not None
        return self.uses_vectors and not (self.is_of("directed_relevance_kernel") and interleaved and signs)

    @property
    def has_neighbours_of_24_values(self) -> bool:
        """Eight pixels of three interleaved channels in half precision, and those around them."""
        half = "Half" in self.name or "BFloat16" in self.name
        return self.is_of("attack_penalty_backward_kernel") and "4WalkE1E" in self.name and half

    def has(self, instruction: str) -> bool:
        """Whether it is there, with whatever said of the cache (EF: the first to leave it)."""
        return any(found.replace(".EF", "").startswith(instruction) for found in self.instructions)


def find_tool(name: str) -> str | None:
    """`name` of a toolkit, of PATH, or of the packages that come with torch."""
    site = Path(sysconfig.get_paths()["purelib"])
    toolkits = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [Path(toolkit) / "bin" / name for toolkit in toolkits if toolkit]
    candidates += sorted(site.glob(f"nvidia/*/bin/{name}")) + sorted(site.glob(f"triton/backends/nvidia/bin/{name}"))
    return next((str(path) for path in candidates if path.exists()), shutil.which(name))


def dumped(option: str, binary: Path) -> str:
    """What cuobjdump prints; for machine code it runs nvdisasm, which lies beside it in a toolkit but not in a
    package."""
    path = os.pathsep.join([str(Path(find_tool("nvdisasm")).parent), os.environ.get("PATH", "")])
    command = [find_tool("cuobjdump"), option, str(binary)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "PATH": path}).stdout


def extension_with_cuda() -> Path | None:
    """The library of CUDA operators, if there is one that holds code for every architecture."""
    for library in sorted(LIBRARIES.glob("libapem_fast_cuda*.so")):
        listed = dumped("--list-elf", library)
        if all(f".{architecture}." in listed for architecture in ARCHITECTURES):
            return library
    return None


def compiled() -> list[Path]:
    """A binary for each .cu, kept by a hash of all that goes into it."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        pytest.skip("the extension holds no CUDA code for sm_80 and sm_90, and there is no nvcc to compile it")
    flags = [
        "-fatbin",
        "-O3",
        "-std=c++17",
        "--fmad=false",
        "--expt-relaxed-constexpr",
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        f"-I{Path(torch.__file__).parent / 'include'}",
        *(f"-gencode=arch=compute_{a[3:]},code={a}" for a in ARCHITECTURES),
    ]
    headers = [path.read_bytes() for pattern in ("csrc/*.h", "csrc/cuda/*h") for path in sorted(ROOT.glob(pattern))]
    shared = hashlib.sha256("\0".join([nvcc, torch.__version__, *flags]).encode() + b"\0".join(headers))
    CACHE.mkdir(parents=True, exist_ok=True)
    binaries = []
    for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
        digest = shared.copy()
        digest.update(source.read_bytes())
        binary = CACHE / f"{source.stem}-{digest.hexdigest()[:20]}.fatbin"
        if not binary.exists():
            unfinished = binary.with_suffix(f".{os.getpid()}")
            subprocess.run([nvcc, *flags, str(source), "-o", str(unfinished)], check=True)
            unfinished.replace(binary)
        binaries.append(binary)
    return binaries


def sections(text: str, name: re.Pattern[str]) -> dict[tuple[str, str], str]:
    """The lines that follow each name which `name` matches, by (architecture, name)."""
    found: dict[tuple[str, str], list[str]] = {}
    architecture, lines = "", None
    for line in text.splitlines():
        if match := re.match(r"arch = (sm_\d+)", line):
            architecture, lines = match[1], None
        elif match := name.match(line):
            lines = found.setdefault((architecture, match[1]), [])
        elif lines is not None:
            lines.append(line)
    return {key: "\n".join(value) for key, value in found.items()}


@cache
def kernels() -> tuple[Kernel, ...]:
    missing = [tool for tool in ("cuobjdump", "nvdisasm") if find_tool(tool) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}; pip install nvidia-cuda-{missing[0]}")
    extension = extension_with_cuda()
    result = []
    for binary in [extension] if extension else compiled():
        usage = sections(dumped("-res-usage", binary), re.compile(r"\s*Function (\S+):"))
        code = sections(dumped("-sass", binary), re.compile(r"\s*Function : (\S+)"))
        for (architecture, name), numbers in usage.items():
            used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", numbers)}
            instructions = frozenset(
                re.findall(
                    r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]+)", code[architecture, name], re.MULTILINE
                )
            )
            result.append(Kernel(name, architecture, used["REG"], used["STACK"], used["LOCAL"], instructions))
    return tuple(result)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_there(kernel: str, architecture: str) -> None:
    found = [k for k in kernels() if k.architecture == architecture and k.is_of(kernel)]
    assert any(k.uses_vectors for k in found) != (kernel in WITHOUT_VECTORS)
    assert any(not k.uses_vectors for k in found)
    assert all("EXIT" in k.instructions for k in found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_spills_and_nothing_lies_in_local_memory(architecture: str) -> None:
    found = [k for k in kernels() if k.architecture == architecture]
    assert [str(k) for k in found if k.stack_bytes or k.local_bytes or k.has("LDL") or k.has("STL")] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_vector_paths_move_128_bits_at_once(architecture: str) -> None:
    vector = [k for k in kernels() if k.architecture == architecture and k.uses_vectors]
    assert [str(k) for k in vector if k.loads_packs_of_floats and not k.has("LDG.E.128")] == []
    storing = [k for k in vector if not any(name in k.name for name in WITHOUT_VECTOR_STORES)]
    assert [str(k) for k in storing if not k.has("STG.E.128")] == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_what_passes_through_is_the_first_to_leave_the_cache(architecture: str) -> None:
    """The direction and the gradients, so that the maps stay in it from one kernel to the next."""
    found = [k for k in kernels() if k.architecture == architecture]
    streaming = [k for k in found if any(".EF" in instruction for instruction in k.instructions)]
    names = ("directed_relevance_kernel", "directed_relevance_backward_kernel", "channel_sums_kernel")
    assert [str(k) for k in streaming if not any(k.is_of(name) for name in names)] == []
    directed = [k for k in found if k.uses_vectors and k.is_of("directed_relevance_kernel")]
    assert directed and all(any(i.startswith("STG.E.EF.128") for i in k.instructions) for k in directed)
    # Two signs for a pack of doubles are no word to stream.
    words = [k for k in directed if not ("AccessId" in k.name and re.search(r"daEEv", k.name))]
    assert words and all(any(i.startswith("LDG.E.EF") for i in k.instructions) for k in words)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scalar_paths_do_not(architecture: str) -> None:
    """They serve pointers between boundaries, where such an access would be an error."""
    scalar = [k for k in kernels() if k.architecture == architecture and not k.uses_vectors]
    assert [str(k) for k in scalar if k.has("LDG.E.128") or k.has("STG.E.128")] == []


def test_registers_stay_within_the_launch_bounds() -> None:
    """Kernels of 256 threads and more."""
    for kernel in kernels():
        doubles = kernel.is_of("rescale_kernel") or kernel.is_of("product_kernel")
        many = any(kernel.is_of(name) for name in OF_128_REGISTERS) or (doubles and "AccessId" in kernel.name)
        most = 255 if kernel.has_neighbours_of_24_values else 128 if many else 64
        assert kernel.registers <= most, str(kernel)
