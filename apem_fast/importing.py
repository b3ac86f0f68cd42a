"""Importing a module that the user named, such as the one of a function that returns a network."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def module_named(path: str) -> ModuleType:
    """The module of that import path, which may be a file in the current folder.

    The current folder is searched last, so that a file there never hides an installed library.
    """
    if "" not in sys.path:
        sys.path.append("")
    return importlib.import_module(path)
