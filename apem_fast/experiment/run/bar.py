"""A run's progress as one bar, in a notebook or a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self, TextIO

from apem_fast.experiment.run.progress import RunProgress, TimeLeft, doing_of


class ProgressBar:
    """Shows `RunProgress` with tqdm: a context manager; call it with each state.

    Args:
        file: where it is written; None for standard error, or the notebook.
        clock: the time in seconds, to estimate the time left.
    """

    def __init__(self, file: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        from tqdm.auto import tqdm

        self._left = TimeLeft(clock)
        self._bar: Any = tqdm(
            total=1.0, desc="starting", file=file, bar_format="{desc} {percentage:3.0f}% |{bar}| {elapsed}{postfix}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def __call__(self, state: RunProgress) -> None:
        bar = self._bar
        bar.total = state.work_total or 1.0
        bar.n = min(state.work, bar.total)
        images = f"{state.images_finished:,} of {state.images:,} images, " if state.images else ""
        explainer = f"{state.explainer}, " if state.explainer and not state.doing else ""
        bar.set_description_str(f"{images}{explainer}{doing_of(state)}", refresh=False)
        bar.set_postfix_str(self._left.text(state), refresh=False)
        bar.refresh() if bar.n >= bar.total else bar.update(0)
