"""The operators from C++: a project of its own finds them, in the package and where CMake installed them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import apem_fast
from apem_fast.ops.load import LIBRARIES, OPERATORS

ROOT = Path(__file__).parent.parent
HEADER = Path(apem_fast.cmake_prefix()) / "include" / "apem_fast" / "operators.h"
MISSING = [tool for tool in ("cmake", os.environ.get("CXX", "g++").split()[0]) if not shutil.which(tool)]
TORCH = f"-DTORCH_ROOT={Path(torch.__file__).parent}"

needs_tools = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
needs_library = pytest.mark.skipif(not (LIBRARIES / "libapem_fast.so").exists(), reason="nothing was compiled")


def run(*arguments: object) -> str:
    command = [str(argument) for argument in arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def build_examples(build: Path, prefix: str | Path, *options: str) -> None:
    run("cmake", "-S", ROOT / "examples" / "cpp", "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", TORCH, *options)
    run("cmake", "--build", build, "--parallel", 2)


@needs_tools
@needs_library
def test_the_package_is_found_and_linked_to(tmp_path: Path) -> None:
    build_examples(tmp_path, apem_fast.cmake_prefix(), "-DWITH_LIBTORCH=OFF")
    assert run(tmp_path / "first_flip") == "the first ray flips at epsilon 3, the second at inf\n"


@pytest.mark.slow
@needs_tools
def test_what_cmake_installs_is_found_and_has_derivatives(tmp_path: Path) -> None:
    run("cmake", "-S", ROOT, "-B", tmp_path / "operators", TORCH, "-DAPEM_FAST_CUDA=OFF", "-DAPEM_FAST_SANITIZERS=OFF")
    run("cmake", "--build", tmp_path / "operators", "--parallel", 2)
    run("cmake", "--install", tmp_path / "operators", "--prefix", tmp_path / "installed")
    build_examples(tmp_path / "examples", tmp_path / "installed")
    assert "the second at inf" in run(tmp_path / "examples" / "first_flip")
    said = run(tmp_path / "examples" / "derivatives")
    assert "refused: relevance_map: the library alone has no derivatives" in said


@pytest.mark.slow
@needs_tools
def test_as_a_part_of_another_project(tmp_path: Path) -> None:
    """The other project's targets may have any name, and its code may include all of torch."""
    (tmp_path / "CMakeLists.txt").write_text(
        f"""
cmake_minimum_required(VERSION 3.25)
project(another LANGUAGES CXX)
add_subdirectory("{ROOT}" apem_fast)
add_executable(example "{ROOT}/examples/cpp/derivatives.cpp")
target_compile_features(example PRIVATE cxx_std_20)
target_include_directories(example PRIVATE "${{TORCH_ROOT}}/include/torch/csrc/api/include")
target_link_libraries(example PRIVATE apem_fast::apem_fast "${{TORCH_ROOT}}/lib/libtorch.so")
"""
    )
    run("cmake", "-S", tmp_path, "-B", tmp_path / "build", TORCH, "-DAPEM_FAST_CUDA=OFF")
    run("cmake", "--build", tmp_path / "build", "--parallel", 2)
    run(tmp_path / "build" / "example")


def test_the_header_has_every_operator_as_the_schemas_have_it() -> None:
    """Names, order and defaults of the arguments."""
    text = re.sub(r"\s+", " ", HEADER.read_text())
    typed = {"Tensor": "const Tensor&", "Tensor?": "const std::optional<Tensor>&", "bool": "bool", "float": "double"}
    typed |= {
        "float?": "std::optional<double>",
        "str": "const std::string&",
        "ScalarType?": "std::optional<ScalarType>",
    }
    values = {"False": "false", "None": "std::nullopt", "sum": '"sum"', "0.0": "0.0", "99.0": "99.0"}
    for operator in OPERATORS:
        schema = getattr(torch.ops.apem_fast, operator).default._schema
        arguments = []
        for argument in schema.arguments:
            kind = str(argument.type).replace("Optional[", "").rstrip("]")
            optional = "?" if "Optional" in str(argument.type) else ""
            name = "ScalarType" if argument.name == "dtype" else kind
            default = f" = {values[str(argument.default_value)]}" if argument.has_default_value() else ""
            arguments.append(f"{typed[name + optional]} {argument.name}{default}")
        returned = ("void", "Tensor", "std::tuple<Tensor, Tensor>")[len(schema.returns)]
        assert f"inline {returned} {operator}({', '.join(arguments)})" in text, operator


def test_the_version_is_one() -> None:
    text = (Path(apem_fast.cmake_prefix()) / "lib/cmake/apem_fast/apem_fast-config-version.cmake").read_text()
    assert f"set(PACKAGE_VERSION {apem_fast.__version__})" in text
