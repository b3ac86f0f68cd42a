"""The metric's results: epsilons of each image, along one direction or along both rays of a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from apem_fast.results import TableResult, censored, counted
from apem_fast.results.plots import COLOURS, draw_epsilons, draw_values

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class EpsilonResult(TableResult):
    """The least epsilon of each image along one direction (all tensors are (N,), on the CPU)."""

    epsilon: Tensor  # float64; max_epsilon where censored
    flipped: Tensor  # bool; False: no flip up to max_epsilon
    labels: Tensor  # int64: the predictions
    probes: Tensor  # int64: model inputs that were run
    record: str  # "float64" or "float32": what decided where margins are close to 0
    proved: bool = False  # whether each epsilon is proved to be the first, as by search="certified"

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        names = ("labels", "epsilon", "flipped", "probes")
        return {name.replace("labels", "label"): getattr(self, name) for name in names}

    def _said(self) -> list[str]:
        median = f"median epsilon {np.median(self.epsilon.numpy()):g}" if len(self.epsilon) else "no epsilon"
        how = [f"record={self.record}", *["proved"] * self.proved]
        return [counted(len(self.epsilon), "image"), median, censored(self.flipped), *how]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the epsilon of each image, with a hollow dot if it is censored. Without `ax`, into new axes."""
        return draw_values(ax, self.epsilon, self.flipped, xlabel="ε", label="least ε", log=True)


@dataclass(frozen=True, eq=False, repr=False)
class ApemResult(TableResult):
    """The metric of N images (all tensors are (N,), on the CPU).

    A ray without a flip is censored: its epsilon is `max_epsilon` and its `flipped_*` is False. The score is then not
    exact: it is too low if only the irrelevance ray is censored, and too high if only the relevance ray is.
    """

    epsilon_minus: Tensor  # float64, on the relevance ray
    epsilon_plus: Tensor  # float64, on the irrelevance ray
    flipped_minus: Tensor  # bool; False: censored
    flipped_plus: Tensor  # bool; False: censored
    labels: Tensor  # int64: the predictions that were explained
    probes: Tensor  # int64: model inputs that were run for the image's two rays
    max_epsilon: float
    step: float
    record: str  # "float64" or "float32": what decided where margins are close to 0
    proved: bool = False  # whether each epsilon is proved to be the first, as by search="certified"

    @property
    def score(self) -> Tensor:
        """epsilon_plus - epsilon_minus, (N,) float64."""
        return self.epsilon_plus - self.epsilon_minus

    @property
    def mean(self) -> float:
        """APEM, P1 equation 2: the mean score over the images that could be measured."""
        return float(self.score.nanmean())

    @property
    def measured(self) -> Tensor:
        """Whether the map could be measured, (N,) bool; if not, its numbers are NaN: see `on_bad_map` of `apem`."""
        return ~self.epsilon_minus.isnan()

    @property
    def median(self) -> float:
        """The median score; for an even number of images, the mean of the middle two."""
        scores = self.score[self.measured]
        return float(np.median(scores.numpy())) if len(scores) else math.nan

    def _columns(self) -> dict[str, Tensor | Sequence[Any]]:
        names = ("labels", "epsilon_minus", "epsilon_plus", "score", "flipped_minus", "flipped_plus", "probes")
        return {name.replace("labels", "label"): getattr(self, name) for name in names}

    def _said(self) -> list[str]:
        said = [counted(len(self.score), "image"), f"mean score {self.mean:.5g}", f"median {self.median:.5g}"]
        measured = self.measured
        said.append(censored(self.flipped_minus[measured], self.flipped_plus[measured]))
        if not bool(measured.all()):
            said.append(f"{counted(int((~measured).sum()), 'map')} without a ray")
        how = [f"record={self.record}", *["proved"] * self.proved]
        return [*said, f"max_epsilon={self.max_epsilon:g}", f"step={self.step:g}", *how]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw both epsilons of each image, with hollow dots if they are censored. Without `ax`, into new axes.

        A good map has its epsilon_minus far to the left of its epsilon_plus. More than 30 images are sorted by score.
        """
        rays = (
            ("ε⁻, relevance", COLOURS["epsilon_minus"], self.epsilon_minus, self.flipped_minus),
            ("ε⁺, irrelevance", COLOURS["epsilon_plus"], self.epsilon_plus, self.flipped_plus),
        )
        return draw_epsilons(ax, rays, order=self.score)
