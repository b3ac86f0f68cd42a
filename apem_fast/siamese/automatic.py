"""Automatic step lengths: normalised gradients, and the change of the ranking that each step should make.

With a fixed step size a step does nothing on one network and overshoots on the next, because gradients differ by orders
of magnitude between networks. Here a step follows the negative gradient. Its length is chosen so that, to first order,
the ranking moves by a share of its way to the target. It is at most a small part of the image's norm, even if the
network is flat, and shorter if the last step changed the ranking less than predicted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from apem_fast.running.undisturbed import no_autocast
from apem_fast.siamese.checks import require_gradient
from apem_fast.siamese.networks import Ranker

__all__ = ["SHARE", "Stride", "sizes", "usual_step"]

SHARE = 0.25  # an attack on a linear ranking takes this share of its steps; the others are for rankings that bend
LONGEST = 0.05  # the longest step, as a share of the original's norm
SHORTENED, LENGTHENED = 0.5, 1.5  # factors of the trust after less than POOR or more than GOOD of the predicted change
POOR, GOOD = 0.25, 0.75
VISIBLE = 1e-6  # smaller changes of the ranking are rounding, and say nothing about a step


def sizes(values: Tensor) -> Tensor:
    """The l2 norm of each, (N, ...) -> (N,); if it is 0, the norm of as many ones."""
    norm = torch.linalg.vector_norm(values.flatten(1), dim=1)
    return torch.where(norm > 0, norm, values[0].numel() ** 0.5)


class Stride:
    """The length of the next step of each pair; tensors are (K,) for K pairs, which do not affect one another.

    Attributes:
        change: the change of the ranking that a step should make.
        longest: the longest step.
        trust: greater than 0: the factor of a step's length, learnt from earlier steps.
        promised: the predicted change of the last step; None before the first.
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
        """Sets the trust from the change of the ranking in the last step.

        A ranking that is clipped at an end of [0, 1] does not show a step's effect; steps grow there, up to `longest`.
        """
        assert self.promised is not None
        brought = (before - after) * (before - target).sign()
        blind = (before == after) & ((after <= 0) | (after >= 1))
        seen = (self.promised > VISIBLE) & ~blind
        poor, good = seen & (brought < POOR * self.promised), seen & (brought > GOOD * self.promised)
        trust = torch.where(poor, self.trust * SHORTENED, torch.where(good, self.trust * LENGTHENED, self.trust))
        self.trust = torch.where(blind, self.trust * LENGTHENED, trust.clamp(max=1))

    def along(self, gradient: Tensor, score: Tensor, target: Tensor) -> Tensor:
        """The step to subtract, from the gradient of the distance to the target, |score - target|, and the penalties.

        A pair without a gradient stays where it is.
        """
        shape = (-1,) + (1,) * (gradient.dim() - 1)
        # In units of the greatest value, since the squares of the smallest gradients underflow to 0.
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
    """A fixed step size that suits a network, for attacks that need one, and the size of the loss's gradient.

    With it, the first step moves the ranking by its share of the way to the target (the median over the pairs).

    Returns:
        (lambda, the root mean square of the gradient of (ranking - target)^2 over the pixels, the median over pairs).
    """
    with torch.inference_mode(False), torch.enable_grad(), no_autocast():
        point = first.detach().clone().requires_grad_()
        score = ranker.rank(point, second.detach().clone())
        require_gradient("attack", score)
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
