"""Where CMake finds the operators of the installed package."""

from __future__ import annotations

from pathlib import Path


def cmake_prefix() -> str:
    """The folder to add to CMAKE_PREFIX_PATH, so that `find_package(apem_fast CONFIG)` finds this package's operators.

    cmake -B build -DCMAKE_PREFIX_PATH="$(python -c 'import apem_fast; print(apem_fast.cmake_prefix())')"
    """
    return str(Path(__file__).parent)
