"""search="certified": bounds that hold at every point, flips that are the scan's, and what cannot be proved refused."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images_and_maps, small_network
from torch import Tensor, nn

import apem_fast as af
from apem_fast.experiment.run.options import RunOptions
from apem_fast.probing.columns import columns_of
from apem_fast.probing.engine import Flips
from apem_fast.probing.proving import proved
from apem_fast.running.segments import NotBounded, OnSegments, least_margins
from apem_fast.search import Certified, Isolate

# -- the loop, with scripted margins ---------------------------------------------------------------------------------


@dataclass
class Scripted:
    """Margins (rays, steps + 1), bounded `slack` too low a step."""

    margins: np.ndarray
    slack: float
    segments_at_once: int
    bounded: int = 0

    @property
    def rays(self):
        return range(len(self.margins))

    def least_margins(self, ray, first, last):
        self.bounded += len(ray)
        assert len(ray) <= self.segments_at_once
        ends = list(zip(ray, first.astype(int), last.astype(int)))
        low = [self.margins[r, a : b + 1].min() - self.slack * (b - a + 1) for r, a, b in ends]
        return np.array(low), np.array([self.margins[r, (a + b) // 2] for r, a, b in ends])

    def flips_of_record(self, ray, epsilon):
        return self.margins[ray, epsilon.astype(int)] < 0


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.01, 0.3, math.inf]), st.integers(1, 9))
def test_whatever_was_found_before_the_first_flip_comes_out(seed, slack, at_once):
    random = np.random.default_rng(seed)
    rays, last = 4, 60
    margins = np.cumsum(random.normal(-0.02, 0.3, (rays, last + 1)), axis=1) + 1.5
    negative = margins[:, 1:] < 0
    first = np.where(negative.any(axis=1), negative.argmax(axis=1) + 1, last)
    found = random.integers(1, last + 1, rays)  # a right flip, a later one, or none at all
    flips = Flips(found, random.random(rays) < 0.7, np.zeros(rays, np.int64))
    prober = Scripted(margins, slack, at_once)
    result = proved(prober, flips, Certified(asked=int(random.integers(1, 6))), step=1.0, last_step=last)
    assert result.step.tolist() == first.tolist() and result.flipped.tolist() == negative.any(axis=1).tolist()
    assert (result.probes > 0).all()


def test_straight_margins_take_few_segments():
    prober = Scripted(np.linspace(1.001, -0.999, 1001)[None], 0.0, 8)
    flips = Flips(np.array([501]), np.array([True]), np.zeros(1, np.int64))
    assert proved(prober, flips, Certified(), step=1.0, last_step=1000).step == 501 and prober.bounded == 1


# -- the bounds -------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """As networks in use are written: additions in place, functions, views, a concatenation."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8)
        self.second, self.third = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 8, 1)
        self.pool, self.head = nn.MaxPool2d(3, 2, 1), nn.Linear(288, 6)
        self.register_buffer("mean", torch.tensor([0.1, 0.2, -0.1])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.pad((images - self.mean) / 0.7, (0, 1, 0, 1))
        x = self.pool(nn.functional.relu6(self.norm(self.first(x))))
        branch = self.second(x)
        branch += x
        branch = nn.functional.leaky_relu(branch, 0.1, inplace=True)
        x = nn.functional.relu(self.third(branch), inplace=True)
        x = torch.cat([x, nn.functional.avg_pool2d(branch, 3, 1, 1)[:, :4], branch[:, 4:]], dim=1)
        x = torch.cat([x.clamp(-1, 0.5).flatten(1)[:, :256], x.mean((2, 3)).repeat(1, 2)], dim=1)
        return self.head(x)


def seeded(make) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return make().eval().requires_grad_(False)


NETWORKS = {"convolutions": lambda: small_network(1).requires_grad_(False), "residual": lambda: seeded(Residual)}


def margins(network: nn.Module, inputs: Tensor, label: int) -> Tensor:
    logits = network(inputs)
    others = logits.clone()
    others[:, label] = -math.inf
    return logits[:, label] - others.amax(dim=1)


@pytest.mark.parametrize("clipped", [(None, None), (-0.8, (0.5, 1.0, 0.7))], ids=["free", "clipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_margin_of_a_segment_lies_below_its_bound(name, dtype, clipped):
    network = NETWORKS[name]().to(dtype)
    images, relevance = images_and_maps(2, dtype=dtype)
    images = images.clamp(-0.8, 0.5)  # some values lie on the bounds
    evaluator = af.Evaluator(network, images, bounds=clipped)
    twin, rays = NETWORKS[name]().double(), evaluator.rays(relevance, np.arange(2))
    near = 0
    for length in (0.0, 0.125, 2.0):
        first = np.arange(0, 12, 3.0)
        ray = np.arange(4)
        with evaluator.probing_exactly(rays) as prober:
            lowest, _ = prober.least_margins(ray, first, first + length)
            for r, start, low in zip(ray, first, lowest):
                epsilon = start + length * torch.linspace(0, 1, 21).double()
                here = prober._probes().inputs(columns_of(prober.rays, np.full(21, r), epsilon.numpy()))
                least = float(margins(twin, here.double(), int(evaluator.labels[r // 2])).min())
                assert low <= least
                near += least - low < 1e-3 + length
    assert near >= 9  # bounds that say something


def test_points_in_float32_lie_within_the_inputs_of_their_segments():
    images, relevance = images_and_maps(3)
    evaluator = af.Evaluator(small_network(0), (images * 100).clamp(min=-150), bounds=(-150.0, None))
    rays = evaluator.rays(relevance, np.arange(3))
    ray, first = torch.arange(6), torch.rand(6, generator=torch.Generator().manual_seed(0)).double() * 4000
    last = first + 77.7
    where = torch.from_numpy(rays.norm), torch.from_numpy(rays.image), torch.from_numpy(rays.map), ray % 2 == 1
    v, off = rays.on_segments(*where, first, last), 0.0
    for share in torch.linspace(0, 1, 13).double():
        inputs = rays.inputs(*where, first + share * (last - first), torch.zeros(6).double()).double()
        away = (inputs - v.offset - (2 * share - 1) * v.slope).abs()
        assert bool((away <= v.error).all())
        off = max(off, float((away / v.error).max()))
    assert off > 0.1


def exactly(network: nn.Sequential, inputs: list[Fraction]) -> list[Fraction]:
    """Linear layers and ReLUs without any rounding."""
    for layer in network:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.tolist(), layer.bias.tolist()
            inputs = [sum((Fraction(w) * x for w, x in zip(row, inputs)), Fraction(b)) for row, b in zip(weight, bias)]
        else:
            inputs = [max(x, Fraction(0)) for x in inputs]
    return inputs


def test_errors_hold_what_float64_rounds_whatever_the_order_of_the_sums():
    """Held to exact fractions, on weights whose sums cancel almost wholly; shuffled sums lie within as well."""
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    with torch.random.fork_rng([]):
        network = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)).double()
    for layer in network[::2]:
        layer.weight.data, layer.bias.data = numbers(*layer.weight.shape), numbers(len(layer.bias))
        layer.weight.data[:, 12:] = -layer.weight.data[:, :12] * (1 + 1e-9 * numbers(*layer.weight[:, :12].shape))
    network.requires_grad_(False)
    x, d = numbers(24), 1e-9 * numbers(24)
    x[12:] = x[:12]
    v = network(OnSegments(x[None], d[None], torch.zeros(1, 24).double()))
    furthest = 0.0
    for t in (-1.0, -0.3, 0.0, 0.7, 1.0):
        exact = exactly(network, [Fraction(a) + Fraction(b) * Fraction(t) for a, b in zip(x.tolist(), d.tolist())])
        order = torch.randperm(24, generator=generator)
        shuffled = nn.functional.linear((x + d * t)[order], network[0].weight[:, order], network[0].bias)
        computed = network[1:](shuffled).tolist()
        for i, (value, other) in enumerate(zip(exact, computed)):
            middle = Fraction(v.offset[0, i].item()) + Fraction(v.slope[0, i].item()) * Fraction(t)
            error = Fraction(v.error[0, i].item())
            assert abs(value - middle) <= error
            # The point itself was rounded before the network saw it: as far again.
            assert abs(Fraction(other) - middle) <= 2 * error
            furthest = max(furthest, float(abs(Fraction(other) - value)))
    assert furthest > 0  # float64 does round here


def test_values_that_share_memory_change_together():
    """What one view is overwritten with, every other sees, as in any tensor."""

    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            flat = x.flatten(1)
            half = flat[:, :4]
            nn.functional.relu(half, inplace=True)
            half.mul_(-3).add_(flat[:, 4:8])
            return x.view(len(x), -1)[:, :8]

    x = torch.tensor([[-1.0, 2, -3, 4, 5, -6, 7, -8]]).double().view(1, 2, 2, 2)
    v = Views()(OnSegments(x.clone(), 0 * x, 0 * x))
    assert torch.allclose(v.offset, Views()(x), rtol=0, atol=1e-12) and float(v.error.max()) < 1e-12


def test_logits_changed_in_place_are_not_taken_for_those_of_the_layer():
    class Changed(nn.Module):
        def __init__(self, where: str):
            super().__init__()
            self.where, self.layer = where, nn.Linear(4, 3).double()

        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.0
            logits = self.layer(x)
            (x if self.where == "inputs" else logits.view(-1)).mul_(-1)
            return logits

    for where in ("inputs", "logits"):
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(0)
            model, x = Changed(where), torch.randn(1, 4).double()
            logits = model(x)
            label = logits.argmax(dim=1)
            low, _ = least_margins(model(OnSegments(x, 0 * x, 0 * x)), label, None)
            top = logits.topk(2).values[0]
            assert float(low) == pytest.approx(float(top[0] - top[1]))


# -- the search -------------------------------------------------------------------------------------------------------

GRID = {"step": 1 / 8, "max_epsilon": 40.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", [{}, {"bounds": (-1.0, 1.0)}, {"target": 3}], ids=["free", "clipped", "target"])
@pytest.mark.parametrize("name", NETWORKS)
def test_epsilons_are_those_of_the_scan_and_said_to_be_proved(name, options, dtype):
    network = NETWORKS[name]().to(dtype)
    images, relevance = images_and_maps(3, dtype=dtype)
    images = images.clamp(-1, 1)
    scan = af.apem(network, images, relevance, search="exhaustive", **options, **GRID)
    result = af.apem(network, images, relevance, search="certified", **options, **GRID)
    assert result.proved and "proved" in repr(result) and not scan.proved and "proved" not in repr(scan)
    for column in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus"):
        assert torch.equal(getattr(result, column), getattr(scan, column))
    along = torch.ones_like(images) / images[0].numel()
    found = [af.minimum_epsilon(network, images, along, search=name, **GRID) for name in ("exhaustive", "certified")]
    assert torch.equal(found[0].epsilon, found[1].epsilon) and found[1].proved


def test_a_proof_corrects_the_search_before_it():
    """Strides that miss everything: the flips are still the first."""
    network = NETWORKS["convolutions"]()
    images, relevance = images_and_maps(3)
    blind = Isolate(safety=1.01, spread=0.0, flat=320, steep=320, growth=1.0)
    right = af.apem(network, images, relevance, search="exhaustive", **GRID)
    proof = af.apem(network, images, relevance, search=Certified(blind, asked=1), **GRID)
    assert torch.equal(proof.score, right.score) and proof.probes.sum() < right.probes.sum()


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] if bool(x.sum() > 0) else x.flatten(1)[:, 3:6]


@pytest.mark.parametrize(
    "layer, named",
    [
        (nn.GELU(), "gelu in GELU"),
        (nn.SiLU(), "silu in SiLU"),
        (nn.Softmax(dim=1), "_softmax in Softmax"),
        (nn.GroupNorm(3, 12), "native_group_norm in GroupNorm"),
        (nn.LayerNorm(12), "native_layer_norm in LayerNorm"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_layers_are_refused_by_name(layer, named):
    images, relevance = images_and_maps(2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 12), layer, nn.Linear(12, 3)).eval()
    with pytest.raises(NotBounded, match=rf'model must be made of .* for search="certified" \(got {named}\)'):
        af.apem(network, images, relevance, search="certified")


def test_a_model_that_looks_at_values_is_refused():
    with pytest.raises(NotBounded, match="got a sum over the images in Branching"):
        Branching()(OnSegments(torch.ones(1, 8), torch.zeros(1, 8), torch.zeros(1, 8)))
    with pytest.raises(NotBounded, match="got batch norm with the statistics of the batch in BatchNorm1d"):
        nn.BatchNorm1d(8, track_running_stats=False)(OnSegments(torch.ones(2, 8), torch.ones(2, 8), torch.ones(2, 8)))


def test_what_is_not_proved_is_refused(monkeypatch):
    network = NETWORKS["convolutions"]()
    images, relevance = images_and_maps(2)
    with pytest.raises(ValueError, match=r'apem: search="certified" .* record must be "float64" \(got "float32"\)'):
        af.apem(network, images, relevance, search="certified", record="float32")
    for call in (af.apem_norm, af.filter_relevance):
        with pytest.raises(ValueError, match=r'search must be another one than "certified".*"careful" is the safest'):
            call(network, images, relevance, search="certified")
    with pytest.raises(ValueError, match=r"shuffled maps, so shuffles must be 0"):
        RunOptions(search="certified", shuffles=3)
    with pytest.raises(ValueError, match=r"Certified: asked must be at least 1 \(got 0\)"):
        Certified(asked=0)


def test_a_network_that_is_too_deep_is_warned_of_and_still_right():
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [layer for _ in range(24) for layer in (nn.Linear(32, 32), nn.ReLU())]
        for layer in layers[::2]:
            layer.weight.data *= 3.5
        network = nn.Sequential(nn.Flatten(), nn.Linear(768, 32), *layers, nn.Linear(32, 4)).eval()
    images, relevance = images_and_maps(2)
    grid = {"step": 1.0, "max_epsilon": 12.0}
    scan = af.apem(network, images, relevance, search="exhaustive", **grid)
    with pytest.warns(UserWarning, match="so deep that the bounds on its rounding errors prove nothing"):
        result = af.apem(network, images, relevance, search="certified", **grid)
    assert torch.equal(result.score, scan.score) and result.proved
