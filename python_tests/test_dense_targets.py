"""A pixel of a segmentation network and a box of a detector, both torchvision's, against a loop over the grid."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import apem_fast as af

STEP, MOST = 1.0, 12


def random_network(make: Callable[..., nn.Module], run: Callable[[nn.Module], object]) -> nn.Module:
    """One of torchvision's with random weights whose batch norms have seen noise, so that signals reach the end."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = make(weights=None, weights_backbone=None, num_classes=4)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None  # the mean of all that was seen
                layer.reset_running_stats()
                layer.train()
        with torch.no_grad():
            run(model)
    return model.eval().requires_grad_(False)


def literal_epsilons(scalars: Callable[[Tensor], Tensor], image: Tensor, relevance: Tensor) -> list[float | None]:
    """The definition: the sign gradient of the cross entropy of the prediction, every grid point one at a time."""
    leaf = image.double().clone().requires_grad_()
    logits = scalars(leaf)
    label = int(logits.argmax())
    nn.functional.cross_entropy(logits, torch.tensor([label])).backward()
    sign = leaf.grad.sign()
    found: list[float | None] = []
    for values in (relevance.double(), 1 - relevance.double()):
        direction = values.expand_as(image) / values.expand_as(image).sum() * sign
        flips = (
            k * STEP
            for k in range(1, round(MOST / STEP) + 1)
            if int(scalars(image.double() + k * STEP * direction).argmax()) != label
        )
        with torch.no_grad():
            found.append(next(flips, None))
    return found


def epsilons(model: nn.Module, image: Tensor, relevance: Tensor) -> list[float | None]:
    result = af.apem(model, image, relevance, max_epsilon=float(MOST), step=STEP, search="exhaustive")
    return [
        float(result.epsilon_minus) if bool(result.flipped_minus) else None,
        float(result.epsilon_plus) if bool(result.flipped_plus) else None,
    ]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_the_pixel_of_a_segmentation(image):
    make = pytest.importorskip("torchvision").models.segmentation.lraspp_mobilenet_v3_large
    network = random_network(make, lambda model: model(torch.rand(4, 3, 32, 32)))
    twin = copy.deepcopy(network).double()
    y, x = 11, 20
    pixel = af.Classifier(network, output=lambda out: out["out"][:, :, y, x])
    relevance = af.relevance_map(af.explain.Gradient()(pixel, image))
    literal = literal_epsilons(lambda images: twin(images)["out"][:, :, y, x], image, relevance)
    assert epsilons(pixel, image, relevance) == literal and any(literal)
    # One class against another: a scalar whose sign decides.
    first, second = twin(image.double())["out"][0, :, y, x].argsort(descending=True)[:2].tolist()
    pair = af.Classifier(network, output=lambda out: out["out"][:, first, y, x] - out["out"][:, second, y, x])

    def two(images: Tensor) -> Tensor:
        logits = twin(images)["out"][:, :, y, x]
        gap = logits[:, first] - logits[:, second]
        return torch.stack([-gap / 2, gap / 2], dim=1)

    assert epsilons(pair, image, relevance) == literal_epsilons(two, image, relevance)


class EveryAnchor(nn.Module):
    """The class logits of every anchor of a detector: (N, anchors, classes), background first."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        batch, _ = self.detector.transform(list(images))
        return self.detector.head(list(self.detector.backbone(batch.tensors).values()))["cls_logits"]


def test_the_box_of_a_detector(image):
    make = pytest.importorskip("torchvision").models.detection.ssdlite320_mobilenet_v3_large
    noise = torch.rand(2, 3, 320, 320, generator=torch.Generator().manual_seed(1))
    network = EveryAnchor(random_network(make, lambda model: EveryAnchor(model)(noise))).eval()
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        shares = network(image)[0].softmax(-1)
        found = network.detector(image)[0]
    anchor = int(shares[:, 1:].amax(-1).argmax())
    # It is the anchor of the box that the detector is surest of.
    torch.testing.assert_close(found["scores"][0], shares[anchor, int(found["labels"][0])])
    box = af.Classifier(network, output=lambda logits: logits[:, anchor])
    relevance = af.relevance_map(af.explain.Gradient()(box, image))
    literal = literal_epsilons(lambda images: twin(images)[:, anchor], image, relevance)
    assert epsilons(box, image, relevance) == literal and any(literal)
