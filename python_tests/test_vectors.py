"""Every version of the CPU operators' vector loops gives the same bits, whatever processor runs these tests."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_operators import result_of, sample
from torch import Tensor

from apem_fast.ops.load import OPERATORS

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import vectors

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)


def bits_of(answer: Tensor) -> bytes:
    return answer.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def answers(operator: str) -> list[Tensor]:
    """What an operator gives for fixed arguments: sizes of less than a vector and of many, and of no whole number."""
    given: list[Tensor] = []
    for size in (1, 5, 33):
        for dtype in DTYPES:
            for memory_format in FORMATS:

                def placed(argument: Any, dtype: torch.dtype = dtype, form: torch.memory_format = memory_format) -> Any:
                    if not isinstance(argument, Tensor):
                        return argument
                    if argument.dtype == torch.float32 and operator != "first_flip":
                        argument = argument.to(dtype)
                    return argument.contiguous(memory_format=form) if argument.dim() == 4 else argument

                arguments = sample(operator, torch.Generator().manual_seed(size), size)
                result = result_of(operator, *map(placed, arguments))
                given += result if isinstance(result, tuple) else (result,)
    return given


def digests() -> dict[str, str]:
    return {name: hashlib.sha256(b"".join(map(bits_of, answers(name)))).hexdigest() for name in OPERATORS}


def test_the_answers_tell_operators_and_values_apart() -> None:
    assert len(set(digests().values())) == len(OPERATORS)
    one = torch.ones(3)
    assert bits_of(one) != bits_of(torch.nextafter(one, 2 * one))


@pytest.mark.slow
@pytest.mark.parametrize("version", vectors.VERSIONS)
def test_every_version_of_the_loops_gives_the_same_bits(version: str, tmp_path: Path) -> None:
    if version not in vectors.versions_here():
        pytest.skip(f"this processor has no {version}")
    tree = vectors.built(version, tmp_path / "tree")
    asked = f"""
import sys
sys.path[:0] = [{str(tree)!r}, {str(Path(__file__).parent)!r}]
import apem_fast, test_vectors
assert apem_fast.__file__.startswith({str(tree)!r}) and apem_fast.backend() != "reference"
print(*(f"{{name}} {{digest}}" for name, digest in test_vectors.digests().items()), sep="\\n")
"""
    said = subprocess.run([sys.executable, "-c", asked], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert dict(line.split() for line in said.stdout.splitlines()) == digests()
