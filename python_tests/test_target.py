"""Any target: classes other than the prediction, and scalars whose sign decides, against loops written out."""

from __future__ import annotations

import pytest
import torch
from test_outputs import MAPS, Returns, X, network
from torch import Tensor, nn

import apem_fast as af

LIMIT = 64


def literal(model: nn.Module, image: Tensor, relevance: Tensor, target: int) -> tuple[list[float], list[bool]]:
    """Both epsilons of one image, every grid point in turn."""
    inputs = image[None].double().requires_grad_()
    twin = network(5).double()
    logits = twin(inputs)[0]
    below = [j for j in range(5) if j != target and logits[j] < logits[target]]
    loss = -logits[[target, *below]].log_softmax(0)[0]
    (gradient,) = torch.autograd.grad(loss, inputs)
    epsilons, flipped = [], []
    for map_ in (relevance, 1 - relevance):
        direction = (map_ / (3 * map_.double().sum())).float() * gradient[0].sign().float()
        for step in range(1, LIMIT + 1):
            with torch.no_grad():
                z = model((image + step * direction)[None])[0]
            if z[target] <= max(z[j] for j in below):
                break
        else:
            epsilons.append(float(LIMIT)), flipped.append(False)
            continue
        epsilons.append(float(step)), flipped.append(True)
    return epsilons, flipped


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
def test_another_class_flips_where_it_is_no_longer_above_what_it_was_above(search):
    model = network(5)
    order = model(X).argsort(dim=1, descending=True)
    target = order[torch.arange(4), torch.tensor([1, 2, 3, 0])]  # second, third, fourth, and the prediction
    result = af.apem(model, X, MAPS, target=target, max_epsilon=LIMIT, search=search)
    for n in range(4):
        epsilons, flipped = literal(model, X[n], MAPS[n], int(target[n]))
        assert [result.epsilon_minus[n], result.epsilon_plus[n]] == epsilons
        assert [result.flipped_minus[n], result.flipped_plus[n]] == flipped
    assert torch.equal(result.labels, target) and result.flipped_minus.any()


def test_the_prediction_as_a_target_is_the_metric():
    model = network(5)
    plain = af.apem(model, X, MAPS, max_epsilon=LIMIT)
    same = af.apem(model, X, MAPS, target=model(X).argmax(1), max_epsilon=LIMIT)
    assert torch.equal(plain.epsilon_minus, same.epsilon_minus) and torch.equal(plain.epsilon_plus, same.epsilon_plus)
    one = af.apem(model, X[:1], MAPS[:1], target=int(plain.labels[0]), max_epsilon=LIMIT)
    assert one.score == plain.score[:1]


def test_shuffles_and_filters_follow_the_target():
    model = network(5)
    target = model(X).argsort(dim=1, descending=True)[:, 1]
    evaluator = af.Evaluator(model, X, target=target, max_epsilon=LIMIT)
    from apem_fast.metric.normalised import shuffled_epsilons
    from apem_fast.relevance import shuffled

    found = shuffled_epsilons(evaluator, MAPS, shuffles=2)
    each = [evaluator.apem({"m": shuffled(MAPS, 0, k)})["m"].epsilon_minus for k in range(2)]
    assert torch.equal(found.epsilon_minus, torch.stack(each).amin(0))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (dict(target=5), r"target must lie in \[0, 5\)"),
        (dict(target=torch.tensor([0, 1])), r"int64 of shape \(4,\)"),
        (dict(target="cat"), "target must be a class"),
        (dict(target=0, labels=torch.zeros(4, dtype=torch.int64)), "do not go with a target"),
        (dict(target=network(5)(X).argmin(1)), "target must be above at least one other class"),
    ],
)
def test_targets_that_will_not_do(arguments, words):
    with pytest.raises(ValueError, match=words):
        af.apem(network(5), X, MAPS, **arguments)


class Segmenter(nn.Module):
    """Classes of each pixel, as torchvision's segmentation models return them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1))
        self.eval()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.body(images)}


def segmenter() -> Segmenter:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Segmenter()


def similarity(embeddings: object) -> Tensor:
    """To the first class's direction, less a threshold."""
    return torch.nn.functional.normalize(embeddings)[:, 0] - 0.1


SCALARS = {
    "a pixel's class against another": (segmenter(), lambda out: out["out"][:, 2, 3, 4] - out["out"][:, 1, 3, 4]),
    "a similarity above a threshold": (network(5), similarity),
    "a regressor's threshold": (Returns(lambda y: y.squeeze(1), classes=1), lambda y: y - 0.05),
}


@pytest.mark.parametrize("what", SCALARS)
def test_any_scalar_whose_sign_decides(what):
    """The least step at which it changes its sign, along the sign of its own gradient: every step in turn."""
    model, scalar = SCALARS[what]
    result = af.apem(af.Classifier(model, output=scalar), X, MAPS, max_epsilon=LIMIT)
    for n in range(4):
        inputs = X[n : n + 1].clone().requires_grad_()
        value = scalar(model(inputs))
        (gradient,) = torch.autograd.grad(value.sum(), inputs)
        sign = gradient.sign() * (-1 if value > 0 else 1)
        direction = (MAPS[n] / (3 * MAPS[n].double().sum())).float() * sign
        with torch.no_grad():
            steps = (k for k in range(1, LIMIT + 1) if (scalar(model(X[n] + k * direction)) > 0) != (value > 0))
            expected = next(steps, None)
        assert bool(result.flipped_minus[n]) == (expected is not None)
        assert result.epsilon_minus[n] == (expected or LIMIT)
        explained = af.explain.Gradient()(af.Classifier(model, output=scalar), X[n : n + 1])
        torch.testing.assert_close(explained, gradient / 2 * (1 if value > 0 else -1))
