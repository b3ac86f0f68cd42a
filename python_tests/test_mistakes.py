"""The mistakes that are made most: each gets one sentence, which ends with the way out, and the way out works."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from networks import images_and_maps, small_network
from torch import nn

import apem_fast as af

MODEL = small_network()
IMAGES, MAPS = images_and_maps(2)
GRADIENT = af.explain.Gradient()
SHORT = {"max_epsilon": 2.0}


def measured(images=IMAGES, maps=MAPS, **options):
    return af.apem(MODEL, images, maps, **SHORT, **options)


class Picture:
    __module__ = "PIL.Image"


class OnImages(nn.Module):
    """As a model that is on another device than the images."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(768, 10, device="meta")


MISTAKES = {
    "numpy images": (lambda: measured(IMAGES.numpy()), "torch.from_numpy(images) is one"),
    "numpy maps": (lambda: measured(maps=MAPS.numpy()), "torch.from_numpy(relevance) is one"),
    "numpy attribution": (lambda: af.relevance_map(MAPS.numpy()), "torch.from_numpy(attribution) is one"),
    "numpy images, explained": (lambda: GRADIENT(MODEL, IMAGES.numpy()), "torch.from_numpy(images) is one"),
    "a list of images": (lambda: measured([*IMAGES]), "torch.stack(images) is one"),
    "a picture": (lambda: measured(Picture()), "the transforms that the model was trained with make one of a picture"),
    "bytes": (lambda: measured(IMAGES.to(torch.uint8)), "images.float() / 255, normalised as the model was trained"),
    "bytes, explained": (lambda: GRADIENT(MODEL, IMAGES.to(torch.uint8)), "images.float() / 255"),
    "channels last": (lambda: measured(IMAGES.permute(0, 2, 3, 1)), "images.permute(0, 3, 1, 2) puts the channels"),
    "channels last, explained": (lambda: GRADIENT(MODEL, IMAGES.mT.permute(0, 2, 3, 1)), "images.permute(0, 3, 1, 2)"),
    "one image": (lambda: measured(IMAGES[0]), "images[None] is a batch of one image"),
    "one image, explained": (lambda: GRADIENT(MODEL, IMAGES[0]), "images[None] is a batch of one image"),
    "a map of two dimensions": (lambda: measured(IMAGES[:1], MAPS[0, 0]), "relevance[None, None] has that shape"),
    "maps of three dimensions": (lambda: measured(maps=MAPS[:, 0]), "relevance[:, None] has that shape"),
    "small maps": (lambda: measured(maps=MAPS[..., :7, :7]), "interpolate(relevance, size=(16, 16))"),
    "an attribution": (lambda: measured(maps=GRADIENT(MODEL, IMAGES)), "relevance_map makes such a map"),
    "maps in float64": (lambda: measured(maps=MAPS.double()), "relevance.to(images.dtype) is"),
    "maps elsewhere": (lambda: measured(maps=MAPS.to("meta")), "relevance.to(images.device) is"),
    "images elsewhere": (lambda: af.apem(OnImages().eval(), IMAGES, MAPS), 'images.to("meta") moves them'),
    "a method": (
        lambda: measured(maps=GRADIENT),
        "relevance(model, images) is an attribution, and relevance_map makes",
    ),
    "a class": (lambda: measured(maps=af.explain.Gradient), "Gradient()(model, images) is an attribution"),
    "a method's name": (lambda: measured(maps="gradient"), "explain.explainer_from('gradient')(model, images)"),
    "a class that is called": (lambda: af.explain.Gradient(MODEL, IMAGES), "Gradient()(model, images)"),
    "one-hot labels": (lambda: measured(labels=torch.eye(10)[[1, 2]]), "labels.argmax(dim=1) are the classes"),
    "one-hot labels, explained": (lambda: GRADIENT(MODEL, IMAGES, torch.eye(10)[[1, 2]]), "labels.argmax(dim=1)"),
    "a list of labels": (lambda: GRADIENT(MODEL, IMAGES, [1, 2]), "torch.tensor(labels) is one"),
    "short labels": (lambda: measured(labels=torch.tensor([1, 2], dtype=torch.int32)), "labels.long() is int64"),
    "the truth as labels": (lambda: measured(labels=torch.tensor([9, 9])), "apem(..., target=) follows another class"),
    "a map for a method": (lambda: af.continuity(MODEL, IMAGES, MAPS), "for which maps that exist will not do"),
    "a name for a method": (lambda: af.continuity(MODEL, IMAGES, "lrp"), "explain.explainer_from('lrp') is the method"),
    "one method's name": (lambda: af.evaluate(MODEL, IMAGES, "gradient"), '{"mine": method} is one'),
    "training mode": (lambda: af.apem(small_network().train(), IMAGES, MAPS), "call model.eval()"),
    "an option's name": (lambda: measured(max_epsilons=3), "did you mean max_epsilon?"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_gets_one_sentence_with_the_way_out(mistake):
    make, way_out = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError)) as came:
        make()
    said = str(came.value)
    assert way_out in said and "\n" not in said and re.match(r"[\w.]+: \w|images", said), said


def test_the_ways_out_work():
    right = measured()
    array, maps = IMAGES.numpy(), MAPS.numpy().astype(np.float64)[:, 0]
    again = measured(torch.from_numpy(array), torch.from_numpy(maps)[:, None].to(IMAGES.dtype))
    assert again == right == measured(torch.stack([*IMAGES]))
    of_name = af.explain.explainer_from("gradient")(MODEL, IMAGES)
    assert torch.equal(af.relevance_map(of_name), af.relevance_map(af.explain.Gradient()(MODEL, IMAGES)))
    assert measured(IMAGES.permute(0, 2, 3, 1).permute(0, 3, 1, 2)) == right
