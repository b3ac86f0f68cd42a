"""How alike two maps are: rank correlation and structural similarity, image by image; computed, and given, on the
CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from apem_fast.extras import extra


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """(N, ...), (N, ...) -> (N,) float64: Spearman's correlation of each pair of maps; NaN where one is constant."""
    with extra("explain", "a rank correlation"):
        from scipy.stats import rankdata

    x, y = (
        rankdata(maps.detach().cpu().double().flatten(1).numpy(), axis=1, nan_policy="propagate")
        for maps in (first, second)
    )
    x, y = (ranks - ranks.mean(axis=1, keepdims=True) for ranks in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return torch.from_numpy((x * y).sum(axis=1) / np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1)))


def structural_similarity(first: Tensor, second: Tensor) -> Tensor:
    """(N, C, H, W), (N, C, H, W) in [0, 1] -> (N,) float64: SSIM of each pair of maps, the mean over channels.

    scikit-image's, with its uniform window of 7 x 7, or the largest odd one that fits smaller maps.
    """
    with extra("explain", "structural similarity"):
        from skimage.metrics import structural_similarity as of_pair

    least = min(first.shape[2:])
    if least < 3:
        return torch.full((len(first),), torch.nan, dtype=torch.float64, device="cpu")
    window = min(7, least - 1 + least % 2)
    pairs = zip(*(maps.detach().cpu().double().numpy() for maps in (first, second)))
    values = [of_pair(a, b, win_size=window, data_range=1.0, channel_axis=0) for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def gradient_histogram_correlation(first: Tensor, second: Tensor) -> Tensor:
    """(N, C, H, W), (N, C, H, W) -> (N,) float64: Pearson's correlation of the histograms of oriented gradients of each
    pair of maps, channels summed; NaN where a map has no gradient, or is smaller than a block.

    scikit-image's, with its usual blocks of 3 x 3 cells of 8 x 8 pixels.
    """
    with extra("explain", "HOG"):
        from skimage.feature import hog

    if min(first.shape[2:]) < 3 * 8:
        return torch.full((len(first),), torch.nan, dtype=torch.float64, device="cpu")
    pairs = zip(*(maps.detach().cpu().double().sum(dim=1).numpy() for maps in (first, second)))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = [np.corrcoef(hog(a), hog(b))[0, 1] for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64, device="cpu")
