"""A run's network and images, made from its options alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from apem_fast.experiment.inputs.classes import Classes, with_class_file
from apem_fast.experiment.inputs.image_folders import ImageSet, image_set
from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.run.options import RunOptions


def inputs_of(options: RunOptions, device: str | torch.device) -> tuple[Network, ImageSet]:
    """The network on `device`, and all images that the run chooses from.

    Raises:
        ValueError, FileNotFoundError: one sentence: the network is unknown, weights or images do not fit it, or a
            package is missing.
    """
    network = load_network(options.network, device, options.weights)
    classes = Classes(network.categories)
    if options.classes is not None:
        classes = with_class_file(network.categories, options.classes)
        network = replace(network, categories=classes.categories)
    images = image_set(options.images, options.ground_truth, classes)
    return network, replace(images, photographs=images.photographs[: options.limit])
