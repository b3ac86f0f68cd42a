"""A verification network that trains in a minute: are two digits the same? Faces are in `faces.py`."""

from __future__ import annotations

import torch

from apem_fast.seeding import seeded
from apem_fast.siamese.networks import SiameseRanker
from apem_fast.siamese.pairs import RankedImages, digits
from apem_fast.siamese.regimes import train_contrastive
from apem_fast.siamese.training import TrainingOptions
from apem_fast.siamese.wrapped import Verifier

__all__ = ["digits_verifier"]


def digits_verifier(steps: int = 300, *, seed: int = 0, progress: bool = True) -> tuple[Verifier, RankedImages]:
    """P3's branch for digits, trained with the contrastive loss on scikit-learn's digits, and the held-out digits.

    It takes two images for the same digit if their embeddings are closer than half the loss's margin.
    """
    learnt, held_out = digits().split(0.2, torch.Generator().manual_seed(0))
    with seeded(seed):
        verifier = Verifier(SiameseRanker.for_mnist(16).branch, distance=0.5)
    options = TrainingOptions(steps=steps, images=64, learning_rate=2e-3, seed=seed, progress=progress)
    train_contrastive(verifier, learnt, options)
    return verifier.eval(), held_out
