"""`apem_fast.audit`: audits maps in memory, or a finished run on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from torch import Tensor

from apem_fast.callers import said_by, sentence
from apem_fast.metric import ApemResult, Evaluator
from apem_fast.metric.auditing import Audit, audit_maps

if TYPE_CHECKING:
    from apem_fast.experiment.run.audited_rays import RunAudit
    from apem_fast.experiment.run.store import RunStore

Maps = Mapping[str, Tensor] | Tensor
Results = Mapping[str, ApemResult] | ApemResult


@overload
def audit(
    of: Evaluator,
    relevance: Maps,
    results: Results | None = None,
    *,
    rays: int = 300,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
) -> Audit: ...


@overload
def audit(
    of: str | Path | RunStore,
    *,
    rays: int = 300,
    seed: int = 0,
    stratified: bool = False,
    up_to: float | None = None,
    trust: bool = False,
    device: str | None = None,
    progress: Callable[..., None] | None = None,
) -> RunAudit: ...


@said_by("audit")
def audit(
    of: Evaluator | str | Path | RunStore,
    relevance: Maps | None = None,
    results: Results | None = None,
    *,
    rays: int = 300,
    seed: int = 0,
    progress: Callable[..., None] | None = None,
    **run: Any,
) -> Audit:
    """Scans rays drawn at random at every grid point up to their flips, and says how often the search was wrong.

    Args:
        of: an evaluator, with the options of the search that is audited; or a finished run, as its folder or its store.
            A run keeps the scans and the result, and an audit of it that was stopped is continued.
        relevance, results: for an evaluator: its maps by name, or one set, and the results of the search for them (None
            searches first).
        rays: how many rays are drawn; a map has two.
        seed: of the draw.
        stratified: for a run: whether each explainer and stage gets its share of the rays. For maps in memory each set
            always does.
        up_to: for a run: draw only from rays whose epsilon was found to be at most this; the result is then about these
            alone. The time of a scan is proportional to its epsilon.
        trust: for a run: whether to run code that the run names and that is not of this package.
        device: for a run: where the network runs; None for the run's own device.
        progress: called often, with (rays scanned, rays of one set, probes so far), or a run's `RunProgress`.

    Raises:
        ValueError, TypeError, FileNotFoundError: one sentence that names the argument, what was expected and what came.
    """
    if isinstance(of, Evaluator):
        if relevance is None or run:
            what = "relevance, its maps" if relevance is None else f"no {', '.join(run)}, which a run has"
            raise TypeError(sentence(f"an evaluator must be given with {what}"))
        return audit_maps(of, relevance, results, rays=rays, seed=seed, progress=progress)
    if relevance is not None or results is not None:
        raise TypeError(sentence("a run must be given without relevance and results, which are its own"))
    from apem_fast.experiment.run.store import RunStore

    store = of if isinstance(of, RunStore) else RunStore(of)
    from apem_fast.experiment.report.audited import write_worst_case  # after the store, which names what is missing
    from apem_fast.experiment.run.audit import audit_run
    from apem_fast.experiment.run.ranks import rank_of_process

    result = audit_run(store, rays=rays, seed=seed, progress=progress, **run)
    if rank_of_process()[0] == 0:
        write_worst_case(store, result)
    return result
