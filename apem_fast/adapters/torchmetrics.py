"""APEM as a torchmetrics.Metric: accumulated over batches, merged over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apem_fast.metric import ApemResult, BoundsOf, Options, apem
from apem_fast.search import Search

try:
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat
except ImportError as error:
    raise ImportError(
        "apem_fast.adapters.torchmetrics needs torchmetrics: pip install 'apem_fast[torchmetrics]'"
    ) from error

COLUMNS = ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus", "labels", "probes")


class _Untracked:
    """Holds the model out of the metric's sight, which else would move, copy and switch it as a part of its own."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> _Untracked:
        return self


class Apem(Metric):
    """The mean score over all images that `update` has seen; `result()` has every image's.

        metric = Apem(model, max_epsilon=1024)
        for images, attribution in batches:
            metric.update(images, af.relevance_map(attribution))
        metric.compute()

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes); moving or copying the metric leaves it as
            it is.
        max_epsilon, step, search, batch_size, bounds: see `apem_fast.metric.Options`.
        kwargs: torchmetrics' own, such as `dist_sync_on_step` and `sync_on_compute`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    def __init__(
        self,
        model: nn.Module,
        *,
        max_epsilon: float = 4096.0,
        step: float = 1.0,
        search: str | Search = "isolate",
        batch_size: int | None = None,
        bounds: BoundsOf = (None, None),
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self._untracked = _Untracked(model)
        self._options = {
            "max_epsilon": max_epsilon,
            "step": step,
            "search": search,
            "batch_size": batch_size,
            "bounds": bounds,
        }
        Options(**self._options)  # a bad one is said now
        for name in COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._records: set[str] = set()

    def update(self, images: Tensor, relevance: Tensor, labels: Tensor | None = None) -> None:
        """Measures a batch: the arguments, and the errors, are those of `af.apem`."""
        result = apem(self._untracked.model, images, relevance, labels=labels, **self._options)
        self._records.add(result.record)
        for name in COLUMNS:
            getattr(self, name).append(getattr(result, name).to(self.device))

    def compute(self) -> Tensor:
        """APEM, the mean score: () float64."""
        return dim_zero_cat(self.epsilon_plus).mean() - dim_zero_cat(self.epsilon_minus).mean()

    def result(self) -> ApemResult:
        """Everything this process has seen, as `af.apem` returns it."""
        with torch.no_grad():
            columns = [dim_zero_cat(getattr(self, name)).cpu() for name in COLUMNS]
        record = "float32" if "float32" in self._records else "float64"
        return ApemResult(*columns, self._options["max_epsilon"], self._options["step"], record)
