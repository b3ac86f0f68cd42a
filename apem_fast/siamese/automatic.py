"""Steps that find their own length: normalised gradients, and the change of the ranking that each is to bring.

A step of a given size per unit of gradient does nothing on one network and overshoots on the next, because gradients
differ by orders of magnitude from network to network. Here a step goes against the gradient's direction, as far as the
first order says the ranking needs for its share of the way to the target; no farther than a small part of the image's
norm, however flat the network is; and less where the last step did not bring what it promised.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apem_fast.siamese.networks import Ranker

__all__ = ["SHARE", "Stride", "sizes", "usual_step"]

SHARE = 0.25  # of the steps that an attack would need if the ranking were straight; the others are for where it is not
LONGEST = 0.05  # of the original's norm: the longest step
SHORTENED, LENGTHENED = 0.5, 1.5  # of the trust, where a step brought less than POOR of what it promised, or over GOOD
POOR, GOOD = 0.25, 0.75
VISIBLE = 1e-6  # changes of the ranking smaller than this are rounding, and say nothing about a step


def sizes(values: Tensor) -> Tensor:
    """(N, ...) -> (N,): the l2 norm of each; where it is 0, that of ones."""
    norm = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return torch.where(norm > 0, norm, values[0].numel() ** 0.5)


class Stride:
    """How long the next step of each pair is; (K,) for K pairs, all on their own.

    Attributes:
        change: what a step is to change the ranking by.
        longest: the longest step.
        trust: greater than 0, the part of a step's length that the ranking has been found to follow.
        promised: what the last step promised; None before the first.
    """

    def __init__(self, change: Tensor, longest: Tensor, trust: Tensor, promised: Tensor | None = None) -> None:
        self.change, self.longest, self.trust, self.promised = change, longest, trust, promised

    @classmethod
    def begin(cls, original: Tensor, score: Tensor, target: Tensor, steps: int) -> Stride:
        share = 1 / max(1.0, SHARE * steps)
        return cls((score - target).abs() * share, LONGEST * sizes(original), torch.ones_like(score))

    def only(self, rows: Tensor) -> Stride:
        promised = None if self.promised is None else self.promised[rows]
        return Stride(self.change[rows], self.longest[rows], self.trust[rows], promised)

    def learn(self, before: Tensor, after: Tensor, target: Tensor) -> None:
        """Sets the trust by what the last step did to the ranking.

        A ranking that is clipped at an end of [0, 1] shows nothing of a step; there they grow, up to the longest.
        """
        assert self.promised is not None
        brought = (before - after) * (before - target).sign()
        blind = (before == after) & ((after <= 0) | (after >= 1))
        seen = (self.promised > VISIBLE) & ~blind
        poor, good = seen & (brought < POOR * self.promised), seen & (brought > GOOD * self.promised)
        trust = torch.where(poor, self.trust * SHORTENED, torch.where(good, self.trust * LENGTHENED, self.trust))
        self.trust = torch.where(blind, self.trust * LENGTHENED, trust.clamp(max=1))

    def along(self, gradient: Tensor, score: Tensor, target: Tensor) -> Tensor:
        """The step to be subtracted, for the gradient of the distance to the target, |score - target| and what it
        costs.

        A pair without a gradient stays where it is.
        """
        shape = (-1,) + (1,) * (gradient.dim() - 1)
        # In units of the greatest value: squares of the smallest gradients are 0.
        greatest = gradient.flatten(1).abs().amax(dim=1)
        unit = gradient / torch.where(greatest > 0, greatest, 1).view(shape)
        norm = torch.linalg.vector_norm(unit.flatten(1), dim=1)
        slope = greatest * norm
        wanted = torch.minimum(self.change, (score - target).abs())
        length = self.trust * torch.minimum(wanted / torch.where(slope > 0, slope, 1), self.longest)
        length = torch.where(slope > 0, torch.minimum(length, self.longest), 0)
        self.promised = slope * length
        return unit * (length / torch.where(norm > 0, norm, 1)).view(shape)


def usual_step(ranker: Ranker, first: Tensor, second: Tensor, target: float, steps: int) -> tuple[float, float]:
    """A fixed step size that suits a network, for attacks that need one, and the loss's gradient that it multiplies.

    It is lambda at which the first step changes the ranking by its share of the way, the median over the pairs.

    Returns:
        (lambda, the root mean square of the gradient of (ranking - target)^2 over the pixels, the median over pairs).
    """
    with torch.inference_mode(False), torch.enable_grad():
        point = first.detach().clone().requires_grad_()
        score = ranker.rank(point, second.detach().clone())
        (gradient,) = torch.autograd.grad(score.sum(), point)
    gap = (score.detach() - target).abs()
    slope = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
    moves = (slope > 0) & (gap > 0)
    if not bool(moves.any()):
        return 1.0, 1.0
    share = 1 / max(1.0, SHARE * steps)
    step_size = (share / (2 * slope[moves] ** 2)).median()
    pull = (2 * gap[moves] * slope[moves]).median() / first[0].numel() ** 0.5
    return float(step_size), float(pull)
