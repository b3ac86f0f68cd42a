"""Modules that a user names by their paths, such as that of a function which makes a network."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def module_named(path: str) -> ModuleType:
    """The module of that import path, which may be a file in the current folder.

    The current folder is looked in last: what lies beside somebody's images never takes the place of a library.
    """
    if "" not in sys.path:
        sys.path.append("")
    return importlib.import_module(path)
