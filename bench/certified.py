"""A proof that a ray does not flip before its flip: bounds of the margin on whole segments of the ray, not on points.

    python -m bench.certified [--rays 60] [--segments 5000]

Along a ray the input is affine in epsilon. On a segment of it every value of the network is kept as offset + slope *
epsilon, with an error that bounds how far off that may be: linear layers pass it on as it is, a ReLU or a maximum that
may change its mind within the segment adds to the error. Where the lowest margin that this leaves is above 0, no point
of the segment flips; else the segment is halved, down to one grid point, which is asked of the network itself.

What is proved: in float64, of the network as it is written (convolutions, linear layers, batch norm in evaluation mode,
average and maximum pooling, ReLU, flatten), that no grid point before the flip flips, whatever the order in which a
processor adds: every layer's error is widened by what rounding can do in any order. What is not: anything about
probes that are answered in float32, and about other layers, which are refused.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

UNIT = 2.0**-52  # twice the rounding of one operation in float64
AT_ONCE = 16  # segments: few, since those beyond a flip are in vain


@dataclass(frozen=True)
class Bounds:
    """Values v of a batch of segments: |v(epsilon) - offset - slope * (epsilon - middle)| <= error on each segment."""

    offset: Tensor
    slope: Tensor
    error: Tensor
    half: Tensor  # (N,) half the segments' lengths

    def over(self, t: Tensor) -> Tensor:
        """`half`, shaped to go with t."""
        return self.half.view(-1, *[1] * (t.dim() - 1))

    @property
    def low(self) -> Tensor:
        return self.offset - self.slope.abs() * self.over(self.slope) - self.error

    @property
    def high(self) -> Tensor:
        return self.offset + self.slope.abs() * self.over(self.slope) + self.error


def through(layer: nn.Module, v: Bounds) -> Bounds:
    """The bounds behind one layer."""
    if isinstance(layer, nn.Sequential):
        for inner in layer:
            v = through(inner, v)
        return v
    if isinstance(layer, (nn.Flatten, nn.Dropout, nn.Identity)):
        return Bounds(layer(v.offset), layer(v.slope), layer(v.error), v.half)
    if isinstance(layer, (nn.Conv2d, nn.Linear, nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
        return _affine(layer, v)
    if isinstance(layer, nn.BatchNorm2d):
        return _scaled(layer, v)
    if isinstance(layer, nn.ReLU):
        return _relu(v)
    if isinstance(layer, nn.MaxPool2d):
        return _maximum(layer, v)
    raise TypeError(f"certified: {type(layer).__name__} is no layer that can be bounded")


def _widened(offset: Tensor, slope: Tensor, error: Tensor, size: Tensor, terms: int, half: Tensor) -> Bounds:
    """With the roundings of a sum of so many terms whose absolute values sum to `size`."""
    return Bounds(offset, slope, error * (1 + (terms + 4) * UNIT) + (terms + 4) * UNIT * size, half)


def _affine(layer: nn.Module, v: Bounds) -> Bounds:
    zero = torch.zeros_like(v.offset[:1])
    constant = layer(zero)
    absolute = _with_absolute_weights(layer)
    greatest = v.offset.abs() + v.slope.abs() * v.over(v.slope) + v.error
    return _widened(
        layer(v.offset),
        layer(v.slope) - constant,
        absolute(v.error),
        absolute(greatest) + 2 * constant.abs() * (1 + v.over(constant)),
        _terms(layer),
        v.half,
    )


def _with_absolute_weights(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, nn.Linear):
        return lambda t: nn.functional.linear(t, layer.weight.abs())
    if isinstance(layer, nn.Conv2d):
        return lambda t: layer._conv_forward(t, layer.weight.abs(), None)
    return layer  # means of non-negative weights


def _terms(layer: nn.Module) -> int:
    return layer.weight[0].numel() + 1 if isinstance(layer, (nn.Linear, nn.Conv2d)) else 4096


def _scaled(layer: nn.BatchNorm2d, v: Bounds) -> Bounds:
    if layer.training:
        raise ValueError("certified: BatchNorm2d must be in evaluation mode")
    scale = layer.weight / (layer.running_var + layer.eps).sqrt()
    scale, mean, bias = (t[None, :, None, None] for t in (scale, layer.running_mean, layer.bias))
    greatest = v.offset.abs() + v.slope.abs() * v.over(v.slope) + v.error
    size = scale.abs() * (greatest + mean.abs()) + bias.abs()
    return _widened((v.offset - mean) * scale + bias, v.slope * scale, v.error * scale.abs(), size, 8, v.half)


def _relu(v: Bounds) -> Bounds:
    """Above 0 as it is, below 0 nothing; in between the middle of the two lines that enclose it."""
    low, high = v.low, v.high
    share = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, high / (high - low).clamp_min(1e-300)))
    crosses = (low < 0) & (high > 0)
    rise = torch.where(crosses, -low * share, 0.0)  # the upper line is share * (v - low)
    size = v.offset.abs() + v.slope.abs() * v.over(v.slope) + v.error + rise
    return _widened(v.offset * share + rise / 2, v.slope * share, v.error * share + rise / 2, size, 4, v.half)


def _maximum(layer: nn.MaxPool2d, v: Bounds) -> Bounds:
    """One of each window's values, and by how much another one may be above it."""
    size = layer.kernel_size
    if not isinstance(size, int) or layer.stride != size or layer.padding or layer.dilation != 1 or layer.ceil_mode:
        raise TypeError("certified: MaxPool2d must have windows side by side")

    def windows(t: Tensor) -> Tensor:
        return t.unfold(2, size, size).unfold(3, size, size).flatten(4)

    offset, slope, error = windows(v.offset), windows(v.slope), windows(v.error)
    best = offset.argmax(dim=-1, keepdim=True)
    its_offset, its_slope, its_error = (t.gather(-1, best) for t in (offset, slope, error))
    above = offset - its_offset + (slope - its_slope).abs() * v.over(offset) + error + its_error
    above = above.scatter(-1, best, 0.0).amax(dim=-1).clamp_min(0)
    size_of = offset.abs().amax(-1) + slope.abs().amax(-1) * v.over(above) + error.amax(-1)
    return _widened(
        its_offset[..., 0] + above / 2, its_slope[..., 0], its_error[..., 0] + above / 2, size_of, 8, v.half
    )


def least_margin(
    network: nn.Module, image: Tensor, direction: Tensor, label: int, begin: Tensor, end: Tensor
) -> Tensor:
    """A number below the margin of `label` on each segment [begin, end], (N,); the network, image and direction
    (1, C, H, W) are in float64."""
    middle, half = (begin + end) / 2, (end - begin) / 2
    half = half * (1 + 4 * UNIT) + 1e-300
    offset = image + middle[:, None, None, None] * direction
    size = image.abs() + end[:, None, None, None] * direction.abs()
    v = Bounds(offset, direction.expand_as(offset), 4 * UNIT * size, half)
    layers = list(network)
    for layer in layers[:-1]:
        v = through(layer, v)
    last = layers[-1]
    if not isinstance(last, nn.Linear):
        raise TypeError("certified: the last layer must be Linear")
    # The margin to each other class as one output: bounds of differences, not differences of bounds.
    others = [j for j in range(last.out_features) if j != label]
    difference = nn.Linear(last.in_features, len(others)).double()
    with torch.no_grad():
        difference.weight.copy_(last.weight[label] - last.weight[others])
        difference.bias.copy_(last.bias[label] - last.bias[others])
    v = through(difference, v)
    return v.low.amin(dim=1)


@dataclass(frozen=True)
class Proof:
    """What was found of one ray."""

    step: int  # the first that flips; where none does, one beyond the last
    proved: bool  # False: the budget ended before every step up to `step` was proved
    segments: int  # that were bounded
    points: int  # that were asked of the network


def certified(
    network: nn.Module, image: Tensor, direction: Tensor, step: float, last_step: int, segments: int = 100_000
) -> Proof:
    """The first grid step that flips, and a proof that none before it does, from at most so many segments."""
    with torch.no_grad():
        label = int(network(image).argmax())
        todo: list[tuple[int, int]] = [(1, last_step)]  # in order; what lies beyond a flip is dropped
        flip, bounded, points = last_step + 1, 0, 0
        while todo and bounded < segments:
            now, todo = todo[:AT_ONCE], todo[AT_ONCE:]
            first, last = (torch.tensor(ends, dtype=torch.float64) * step for ends in zip(*now))
            free = (least_margin(network, image, direction, label, first, last) > 0).tolist()
            bounded += len(now)
            split: list[tuple[int, int]] = []
            for (a, b), proved in zip(now, free):
                if proved or a >= flip:
                    continue
                if a == b:
                    points += 1
                    if int(network(image + a * step * direction).argmax()) != label:
                        flip = min(flip, a)
                    continue
                middle = (a + b) // 2
                split += [(a, middle), (middle + 1, b)]
            todo = [(a, min(b, flip - 1)) for a, b in split + todo if a < flip]
        return Proof(flip, not todo, bounded, points)


# -- how far it carries ----------------------------------------------------------------------------------------------


def networks() -> Iterator[tuple[str, nn.Sequential]]:
    """Trained networks of digits, deeper and deeper."""
    from bench import small_networks
    from bench.small_networks import NETWORKS, trained

    def dense(depth: int) -> nn.Module:
        widths = [small_networks.SIZE**2, *[64] * depth]
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 10))

    for depth in (1, 2, 3, 4, 6, 8):
        name = f"{depth} dense ReLU layer" + ("s" if depth > 1 else "")
        NETWORKS[name] = lambda depth=depth: dense(depth)  # type: ignore[misc]
        yield name, trained(name)  # type: ignore[misc]
    for name in ("wide MLP", "ReLU", "ReLU with batch norm", "ReLU, adversarially trained"):
        yield f"{name} ({'2 dense' if name == 'wide MLP' else '4 convolutions'})", trained(name)  # type: ignore[misc]


def rays_of(network: nn.Sequential, count: int) -> Iterator[tuple[Tensor, Tensor, int, bool]]:
    """Images, directions along gradient maps, and the flips that the search finds in float64."""
    import apem_fast as af
    from apem_fast.explain import Gradient
    from apem_fast.relevance import STAGES
    from bench.small_networks import digits

    images = digits()[0]
    images = images[torch.arange(count // 2) * (len(images) // (count // 2))].double()
    evaluator = af.Evaluator(network, images, max_epsilon=256.0, step=1 / 16)
    maps = STAGES["1-channel"](Gradient()(network, images), images, 99.0)
    result = evaluator.apem({"maps": maps})["maps"]
    for n in range(len(images)):
        for values, epsilon, flipped in (
            (maps[n], result.epsilon_minus[n], result.flipped_minus[n]),
            (1 - maps[n], result.epsilon_plus[n], result.flipped_plus[n]),
        ):
            direction = values / values.sum() * evaluator.sign_gradient[n].double()
            yield images[n : n + 1], direction[None], round(float(epsilon) * 16), bool(flipped)


def main() -> None:
    from bench.timing import print_table, write_json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=60, help="of each network")
    parser.add_argument("--segments", type=int, default=5000, help="a ray may take before it is given up")
    arguments = parser.parse_args()
    rows = []
    for name, network in networks():
        network = network.double()
        proofs, differ, begin = [], 0, time.perf_counter()
        for image, direction, found, flipped in rays_of(network, arguments.rays):
            proof = certified(network, image, direction, 1 / 16, 4096, arguments.segments)
            proofs.append(proof)
            differ += proof.proved and (proof.step != found if flipped else proof.step <= 4096)
        proved = [one for one in proofs if one.proved]
        rows.append(
            {
                "network": name,
                "rays": len(proofs),
                "proved": len(proved),
                "search differs": differ,
                "segments, median": float(np.median([one.segments for one in proofs])),
                "points, median": float(np.median([one.points for one in proofs])),
                "flip, median step": float(np.median([one.step for one in proved])) if proved else None,
                "seconds a ray": (time.perf_counter() - begin) / len(proofs),
            }
        )
        print_table(name, [rows[-1]])
    write_json("certified", rows)


if __name__ == "__main__":
    main()
