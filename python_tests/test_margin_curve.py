"""Margins along rays, and the perturbed images, against their definition written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apem_fast import apem
from apem_fast.margin_curve import RayView, margin_curve

N, C, H, W, CLASSES = 3, 3, 6, 5, 4


@pytest.fixture
def model(generator) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(C, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * (H - 2) * (W - 2), CLASSES)
    ).double()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model.eval()


@pytest.fixture
def images(generator) -> Tensor:
    return torch.randn(N, C, H, W, generator=generator, dtype=torch.float64)


def literal(model: nn.Module, image: Tensor, relevance: Tensor, epsilon: float) -> tuple[Tensor, float]:
    """X + epsilon * R / norm1(R) * sign, and the margin there (P1 section III-A)."""
    leaf = image[None].clone().requires_grad_()
    logits = model(leaf)
    label = int(logits.argmax())
    nn.functional.cross_entropy(logits, logits.argmax(1)).backward()
    relevance = relevance.expand_as(image)
    perturbed = image + epsilon * relevance / relevance.sum() * leaf.grad[0].sign()
    after = model(perturbed[None])[0].detach()
    others = torch.cat([after[:label], after[label + 1 :]])
    return perturbed, float(after[label] - others.max())


@pytest.mark.parametrize("channels", [1, C])
def test_margins_are_those_of_the_definition(model, images, generator, channels):
    relevance = torch.rand(N, channels, H, W, generator=generator, dtype=torch.float64)
    minus = torch.tensor([0.0, 0.5, 3.0, 20.0])
    plus = torch.rand(N, 2, generator=generator, dtype=torch.float64) * 10
    curve = margin_curve(model, images, relevance, minus, plus, batch_size=2)
    assert curve.epsilon_minus.shape == curve.margin_minus.shape == (N, 4) and curve.margin_plus.shape == (N, 2)
    for n in range(N):
        for k in range(4):
            _, expected = literal(model, images[n], relevance[n], float(minus[k]))
            assert float(curve.margin_minus[n, k]) == pytest.approx(expected, abs=1e-9)
        for k in range(2):
            _, expected = literal(model, images[n], 1 - relevance[n], float(plus[n, k]))
            assert float(curve.margin_plus[n, k]) == pytest.approx(expected, abs=1e-9)


def test_several_maps_of_one_image(model, images, generator):
    relevance = torch.rand(4, 1, H, W, generator=generator, dtype=torch.float64)
    of_map = torch.tensor([2, 0, 2, 1])
    view = RayView(model, images, relevance, image_of_map=of_map)
    epsilon = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    margins = view.margins(epsilon[:, None]).margin_minus
    for irrelevance in (False, True):
        seen = view.perturbed(epsilon, irrelevance=irrelevance)
        for m, n in enumerate(of_map.tolist()):
            map_ = 1 - relevance[m] if irrelevance else relevance[m]
            expected, margin = literal(model, images[n], map_, float(epsilon[m]))
            assert torch.allclose(seen[m], expected, atol=1e-12)
            if not irrelevance:
                assert float(margins[m, 0]) == pytest.approx(margin, abs=1e-9)
        assert torch.equal(view.predictions(epsilon, irrelevance=irrelevance), model(seen).argmax(1))
    assert torch.equal(view.labels, model(images).argmax(1))
    top = model(images[of_map]).topk(2, dim=1).values
    assert torch.allclose(view.margins_at_zero, top[:, 0] - top[:, 1], atol=1e-9)


def test_the_margin_falls_below_zero_at_the_epsilon_of_the_metric(model, images, generator):
    relevance = torch.rand(N, 1, H, W, generator=generator, dtype=torch.float64)
    found = apem(model, images, relevance, max_epsilon=200, step=0.25)
    assert found.flipped_minus.any()
    pairs = torch.stack([found.epsilon_minus - 0.25, found.epsilon_minus], dim=1)
    curve = margin_curve(model, images, relevance, pairs)
    for n in torch.nonzero(found.flipped_minus).flatten().tolist():
        assert curve.margin_minus[n, 0] > 0 >= curve.margin_minus[n, 1]


def test_nothing_of_the_users_is_changed(model, images):
    images.requires_grad_(True)
    before, state = images.detach().clone(), {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    margin_curve(model, images, torch.rand(N, 1, H, W, dtype=torch.float64, generator=torch.Generator()), torch.ones(2))
    assert torch.equal(images.detach(), before) and images.grad is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    "epsilon, error, words",
    [
        ([1.0], TypeError, "epsilon_minus must be a tensor"),
        (torch.ones(2, 3), ValueError, r"epsilon_minus must have shape \(K,\) or \(3, K\) \(got \(2, 3\)\)"),
        (torch.tensor([-1.0]), ValueError, "epsilon_minus must be finite and at least 0"),
        (torch.tensor([float("nan")]), ValueError, "epsilon_minus must be finite"),
    ],
)
def test_bad_epsilons_get_one_sentence(model, images, epsilon, error, words):
    relevance = torch.rand(N, 1, H, W, dtype=torch.float64)
    with pytest.raises(error, match=words):
        margin_curve(model, images, relevance, epsilon)


def test_other_bad_arguments_get_one_sentence(model, images):
    relevance = torch.rand(N, 1, H, W, dtype=torch.float64)
    with pytest.raises(ValueError, match="relevance must lie in"):
        margin_curve(model, images, relevance * 3, torch.ones(1))
    with pytest.raises(ValueError, match="batch_size must be"):
        margin_curve(model, images, relevance, torch.ones(1), batch_size=0)
    with pytest.raises(ValueError, match=r"epsilon must have shape \(3,\)"):
        RayView(model, images, relevance).perturbed(torch.ones(2))
    with pytest.raises(ValueError, match="image_of_map must name rows of images"):
        RayView(model, images, relevance, image_of_map=torch.tensor([0, 1, 3]))
