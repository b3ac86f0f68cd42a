"""A plugin of pytest that counts the examples which Hypothesis runs, and writes their number to $APEM_FAST_COUNT."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

ran = 0


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Counts calls of what `given` was put around; Hypothesis has it as an attribute for such purposes."""
    for of in {
        id(item.obj.hypothesis): item.obj.hypothesis for item in items if hasattr(item.obj, "hypothesis")
    }.values():
        of.inner_test = _counted(of.inner_test)


def _counted(test: Any) -> Any:
    @functools.wraps(test)
    def counted(*arguments: Any, **options: Any) -> Any:
        global ran
        ran += 1
        return test(*arguments, **options)

    return counted


def pytest_sessionfinish() -> None:
    Path(os.environ["APEM_FAST_COUNT"]).write_text(str(ran), "utf-8")
