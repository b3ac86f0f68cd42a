"""The report of a run: its page, with close-ups of the first images, which are made if they are missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apem_fast.experiment.inputs.networks import imported_by_network, load_network
from apem_fast.experiment.report.closeups import make_closeups, missing_closeups
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.report.statistics import scored_rows
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import imported_by


def write_report(
    store: RunStore,
    *,
    images: int = 6,
    shown_images: int | None = None,
    paper: bool = False,
    output: str | Path | None = None,
    device: str = "cpu",
    trust: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the page of a run, with close-ups; returns its path.

    Args:
        store: a run with at least one finished explainer; it need not be complete.
        images: how many images get close-ups, the first whose photographs the run kept; 0 needs no network.
        shown_images: how many images are shown with their maps, at least `images`; None for all that were kept.
        paper, output: see `write_page`.
        device: where the network runs for close-ups.
        trust: whether close-ups may import code that the run names and that is not of this package, torchvision, timm
            or Captum (see `foreign_code`). Otherwise such close-ups are left out, since a run may come from anybody.
        progress: called with (images done, in all) while close-ups are made.

    Raises:
        ValueError, FileNotFoundError: nothing to report yet, or the network cannot be loaded again.
    """
    rows, _ = scored_rows(store)
    names = [name for name in store.images()["image"].head(images) if store.photograph(name).exists()]
    if not trust:
        rows = rows[[not imported_by(key) for key in rows["explainer"]]]
    if (trust or not imported_by_network(store.options.network)) and missing_closeups(store, rows, names):
        network = load_network(store.options.network, device, store.options.weights)
        make_closeups(store, network, rows, names, progress)
    return write_page(store, None if shown_images is None else max(shown_images, images), paper=paper, output=output)


def foreign_code(store: RunStore) -> list[str]:
    """The code outside this package, torchvision, timm and Captum that close-ups of a run would import."""
    paths = imported_by_network(store.options.network)
    return [*paths, *(path for key in store.options.explainers for path in imported_by(key))]
