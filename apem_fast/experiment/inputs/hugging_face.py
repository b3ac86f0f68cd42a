"""Image classifiers that Hugging Face's library saved into a folder, with their image processors.

Nothing is downloaded: the folder must hold everything, with the weights as safetensors, which hold no code. A folder
with code of its own is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from apem_fast.experiment.inputs.network import Network
from apem_fast.extras import extra

HUGGING_FACE = "hf:"
"""Begins the name of a network that is such a folder."""
CONFIG, PREPARATION = "config.json", "preprocessor_config.json"
OWN_CODE = "auto_map"
"""The entry of these files that names code of the folder's own."""
SHOWN = 3  # the most names of weights in an error


@dataclass(frozen=True, eq=False, kw_only=True)
class HuggingFaceNetwork(Network):
    """A network whose own image processor prepares its pictures; only the normalisation is done here."""

    processor: Any = field(repr=False)

    def pixels(self, picture: Image.Image) -> Tensor:
        """A picture as the processor prepares it, before normalisation: (3, size, size) in [0, 1]."""
        prepared = self.processor(
            picture.convert("RGB"), do_rescale=True, rescale_factor=1 / 255, do_normalize=False, return_tensors="pt"
        )
        pixels: Tensor = prepared["pixel_values"][0]
        return pixels.float().clamp(0, 1).contiguous()  # bicubic scaling may leave [0, 1]

    @property
    def digest(self) -> str:
        """The digest of every network, which here also depends on the image processor."""
        both = f"{super().digest} {self.processor.to_json_string()}"
        return hashlib.blake2b(both.encode(), digest_size=16).hexdigest()


def hugging_face_network(name: str, weights: object = None) -> Network:
    """The network in a folder.

    Args:
        name: "hf:FOLDER".
        weights: None; the folder brings them.

    Raises:
        ValueError: there is no such folder, or it is incomplete, needs code of its own, or holds no image classifier.
        MissingExtra: the library is not installed.
    """
    folder = Path(name.removeprefix(HUGGING_FACE))
    if weights is not None:
        raise ValueError(f"weights: {name} comes with its own (got {weights})")
    if not folder.is_dir():
        raise ValueError(
            f"network: {name} must name a folder on this machine, as save_pretrained of a model and of its image "
            f"processor writes it; nothing is downloaded ({folder} is none)"
        )
    for file in (CONFIG, PREPARATION):
        if OWN_CODE in _read(folder / file, name):
            raise ValueError(
                f"network: {name} needs code that the folder brings ({OWN_CODE} in its {file}), and that is never run; "
                "package.module:function takes a model that you have loaded yourself"
            )
    with extra("huggingface", f"the network {name}"):
        from transformers import AutoImageProcessor, AutoModelForImageClassification

    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor: Any = AutoImageProcessor.from_pretrained(str(folder), **local)
        model, loaded = AutoModelForImageClassification.from_pretrained(
            str(folder), dtype=torch.float32, use_safetensors=True, output_loading_info=True, **local
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"network: {name} cannot be loaded as a classifier of images ({said})") from None
    _require_all_weights(name, loaded)
    return _network(name, model, processor)


def _network(name: str, model: nn.Module, processor: Any) -> Network:
    scale = 1.0
    if getattr(processor, "do_rescale", True):
        scale = 255 * getattr(processor, "rescale_factor", 1 / 255)
        if getattr(processor, "rescale_offset", False):
            raise ValueError(f"network: {name} moves its pixels below 0 while it scales them, which is not known here")
    else:
        scale = 255.0
    mean: tuple[float, ...] = (0.0,) * 3
    std: tuple[float, ...] = (1.0,) * 3
    if getattr(processor, "do_normalize", False):
        mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    # The model receives (scale * pixels - mean) / std for pixels in [0, 1].
    mean, std = tuple(value / scale for value in mean), tuple(value / scale for value in std)
    pixels = HuggingFaceNetwork(name, model, 0, mean, std, (), processor=processor).pixels(Image.new("RGB", (97, 64)))
    if pixels.dim() != 3 or pixels.shape[0] != 3 or pixels.shape[1] != pixels.shape[2]:
        raise ValueError(
            f"network: {name} must prepare images as squares of three channels (got {tuple(pixels.shape)} for a "
            "picture of 97 by 64)"
        )
    config: Any = model.config
    categories = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    return HuggingFaceNetwork(name, model, pixels.shape[1], mean, std, categories, processor=processor)


def _read(file: Path, name: str) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(
            f"network: {name} lacks {file.name}, which save_pretrained of the model and of its image processor writes"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"network: {file} cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"network: {file} must hold a record (got {type(record).__name__})")  # noqa: TRY004
    return record


def _require_all_weights(name: str, loaded: dict[str, Any]) -> None:
    """Raises if weights are missing, such as those of the last layer: the library would draw them at random."""
    lacking = sorted(map(str, [*loaded["missing_keys"], *loaded["mismatched_keys"]]))
    if lacking:
        more = f" and {len(lacking) - SHOWN} more" if len(lacking) > SHOWN else ""
        raise ValueError(
            f"network: {name} lacks weights of the classifier that its {CONFIG} describes: "
            f"{', '.join(lacking[:SHOWN])}{more}"
        )
