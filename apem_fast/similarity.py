"""How similar two maps are, image by image: rank correlation, structural similarity, histograms of gradients.

Everything is computed on the CPU, and the results are on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from apem_fast.extras import extra


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps: (N, ...), (N, ...) -> (N,) float64; NaN if one is constant."""
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
    """SSIM of each pair of maps, averaged over channels: (N, C, H, W), (N, C, H, W) in [0, 1] -> (N,) float64.

    This is scikit-image's, with its uniform window of 7 x 7; on smaller maps, with the largest odd window that fits.
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
    """Pearson's correlation of the histograms of oriented gradients of each pair of maps, whose channels are summed.

    The histograms are scikit-image's, with its default blocks of 3 x 3 cells of 8 x 8 pixels.

    Args:
        first, second: (N, C, H, W).

    Returns:
        (N,) float64; NaN where a map has no gradient, or is smaller than a block.
    """
    with extra("explain", "HOG"):
        from skimage.feature import hog

    if min(first.shape[2:]) < 3 * 8:
        return torch.full((len(first),), torch.nan, dtype=torch.float64, device="cpu")
    pairs = zip(*(maps.detach().cpu().double().sum(dim=1).numpy() for maps in (first, second)))
    with np.errstate(invalid="ignore", divide="ignore"):
        values = [np.corrcoef(hog(a), hog(b))[0, 1] for a, b in pairs]
    return torch.tensor(values, dtype=torch.float64, device="cpu")
