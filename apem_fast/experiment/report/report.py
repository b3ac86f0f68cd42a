"""The report of a finished run: its page with close-ups of the first images, made where the run's folder lacks them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.report.closeups import make_closeups, missing_closeups
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.run.store import RunStore


def write_report(
    store: RunStore,
    *,
    images: int = 6,
    shown_images: int | None = None,
    paper: bool = False,
    output: str | Path | None = None,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Write the page of a run, with close-ups; returns its path.

    Args:
        store: a run with at least one finished explainer; it need not be complete.
        images: how many images get close-ups, the first whose photographs the run kept; 0 needs no network.
        shown_images: how many images are shown with their maps, at least `images`; None for all that were kept.
        paper, output: see `write_page`.
        device: where the network runs that makes close-ups.
        progress: called with (images done, in all) while close-ups are made.

    Raises:
        ValueError, FileNotFoundError: nothing to report yet, or the network cannot be loaded again.
    """
    rows, _ = scored_rows(store)
    names = [name for name in store.images()["image"].head(images) if store.photograph(name).exists()]
    if missing_closeups(store, rows, names):
        network = load_network(store.options.network, device, store.options.weights)
        make_closeups(store, network, rows, names, progress)
    return write_page(store, None if shown_images is None else max(shown_images, images), paper=paper, output=output)
