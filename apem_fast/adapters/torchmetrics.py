"""APEM as a torchmetrics.Metric: accumulated over batches, merged over processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from apem_fast.callers import said_by
from apem_fast.extras import extra
from apem_fast.metric import ApemResult, apem
from apem_fast.options import ENGINE, Options, documented
from apem_fast.search import Certified

with extra("torchmetrics", "apem_fast.adapters.torchmetrics"):
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat

# The metric's states, in the order of ApemResult, with their dtypes.
COLUMNS = {
    "epsilon_minus": torch.float64,
    "epsilon_plus": torch.float64,
    "flipped_minus": torch.bool,
    "flipped_plus": torch.bool,
    "labels": torch.int64,
    "probes": torch.int64,
}


class _Untracked:
    """Hides the model from the metric, which would otherwise move it, copy it and change its mode as a submodule."""

    def __init__(self, model: nn.Module):
        self.model = model

    def __deepcopy__(self, memo: dict[int, Any]) -> _Untracked:
        return self


@documented()
class Apem(Metric):
    """The mean score over all images that `update` has seen; `result()` has every image's.

        metric = Apem(model, max_epsilon=1024)
        for images, attribution in batches:
            metric.update(images, af.relevance_map(attribution))
        metric.compute()

    At the papers' last stage, times-image, the maps are `af.relevance_map(attribution, pixels)`.

    Args:
        model: an `nn.Module` in eval mode that returns logits (N, classes); it is not moved or copied with the metric.
        options: see `apem_fast.options.Options`; torchmetrics' own, such as `dist_sync_on_step`, are taken too.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    epsilon_minus: list[Tensor]
    epsilon_plus: list[Tensor]

    @said_by("Apem")
    def __init__(self, model: nn.Module, **options: Any):
        own = {name: options.pop(name) for name in ENGINE if name in options}
        record = Options(**own)  # raises now if an option is bad
        super().__init__(**options)
        self._untracked = _Untracked(model)
        self._options: dict[str, Any] = {name: getattr(record, name) for name in ENGINE}
        for name in COLUMNS:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._records: set[str] = set()

    @said_by("Apem.update")
    def update(self, images: Tensor, relevance: Tensor, labels: Tensor | None = None) -> None:
        """Measure a batch. The arguments and the errors are those of `af.apem`."""
        result = apem(self._untracked.model, images, relevance, labels=labels, **self._options)
        self._records.add(result.record)
        for name in COLUMNS:
            getattr(self, name).append(getattr(result, name).to(self.device))

    def sync(self, *arguments: Any, **options: Any) -> None:
        """Merge the states of all processes, as torchmetrics does. A process without images sends empty states."""
        if not self._is_synced:
            for name, dtype in COLUMNS.items():
                if not getattr(self, name):
                    setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])
        super().sync(*arguments, **options)

    def compute(self) -> Tensor:
        """APEM, the mean score: () float64."""
        return dim_zero_cat(self.epsilon_plus).mean() - dim_zero_cat(self.epsilon_minus).mean()

    def result(self) -> ApemResult:
        """The results of all images that this process has seen, as `af.apem` returns them."""
        with torch.no_grad():
            columns = {name: dim_zero_cat(getattr(self, name)).cpu() for name in COLUMNS}
        record = "float32" if "float32" in self._records else "float64"
        o = self._options
        proved = isinstance(Options(**o).policy, Certified)
        return ApemResult(**columns, max_epsilon=o["max_epsilon"], step=o["step"], record=record, proved=proved)

    def plot(self, val: Tensor | list[Tensor] | None = None, ax: Any = None) -> Any:
        """Plot the mean score, or several collected over time, as torchmetrics plots its metrics; needs matplotlib.

        Args:
            val: what `compute` or `forward` returned, once or in a list; None computes it now.
            ax: the matplotlib axis to draw into.

        Returns:
            The figure and its axis.
        """
        return self._plot(val, ax)
