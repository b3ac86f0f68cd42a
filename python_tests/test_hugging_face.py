"""Networks that Hugging Face's library saved into a folder: seen and answered as that library does, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apem_fast.experiment.inputs.networks import imported_by_network, load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.experiment.run.options import RunOptions
from apem_fast.extras import MissingExtra


def saved(folder: Path, kind: str = "vit", **processing: object) -> Path:
    """A tiny classifier with random weights, and its image processor."""
    transformers = pytest.importorskip("transformers")
    names = {0: "tabby", 1: "espresso", 2: "daisy"}
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        if kind == "vit":
            config = transformers.ViTConfig(
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                image_size=32,
                patch_size=8,
                **labels,
            )
            model = transformers.ViTForImageClassification(config)
            processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, **processing)
        else:
            config = transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", **labels
            )
            model = transformers.ResNetForImageClassification(config)
            processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.875, **processing)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "kind, processing",
    [
        ("vit", {}),
        ("resnet", {}),
        ("vit", {"do_normalize": False}),
        ("vit", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3}),
        ("vit", {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0]}),
        ("vit", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
    ],
)
def test_it_sees_and_says_what_it_does_in_its_own_library(kind, processing, tmp_path):
    transformers = pytest.importorskip("transformers")
    saved(tmp_path / "model", kind, **processing)
    network = load_network(f"hf:{tmp_path / 'model'}")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "model").eval()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "model")
    for photograph in bundled_photographs()[:3]:
        picture = photograph.open()
        prepared = processor(picture, return_tensors="pt")["pixel_values"]
        pixels = network.pixels(picture)[None]
        assert pixels.shape == (1, 3, 32, 32) and 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
        images = network.normalised(pixels)
        torch.testing.assert_close(images, prepared, rtol=1e-5, atol=1e-5 * float(prepared.abs().max()))
        torch.testing.assert_close(network.pixels_of(images), pixels, rtol=0, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(network.model(images).logits, model(images).logits)
    assert network.categories == ("tabby", "espresso", "daisy") and network.size == 32
    assert not network.model.training and next(network.model.parameters()).dtype == torch.float32
    assert imported_by_network(network.name) == []


def test_a_run_explains_it(tmp_path):
    from apem_fast.experiment.run.evaluate import evaluate

    saved(tmp_path / "model")
    for number in range(2):
        picture = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
    options = RunOptions(
        network=f"hf:{tmp_path / 'model'}",
        images=str(tmp_path / "images"),
        explainers=("gradient",),
        stages=("1-channel",),
        max_epsilon=64.0,
    )
    results = evaluate(options, tmp_path / "run").results()
    assert len(results) == 2 and (results["flag"] == "").all() and results["epsilon_minus"].gt(0).all()


def test_another_preparation_is_another_network(tmp_path):
    one, same, other = (saved(tmp_path / name, **how) for name, how in (("a", {}), ("b", {}), ("c", {"resample": 3})))
    digests = [load_network(f"hf:{folder}").digest for folder in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_weights_in_half_precision_are_used_in_float32(tmp_path):
    transformers = pytest.importorskip("transformers")
    saved(tmp_path / "model")
    model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "model").half()
    model.save_pretrained(tmp_path / "model")
    assert next(load_network(f"hf:{tmp_path / 'model'}").model.parameters()).dtype == torch.float32


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | entries), "utf-8")


def test_a_folder_that_needs_code_or_lacks_something_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = saved(tmp_path / "model")
    name = f"hf:{folder}"

    def refused(words: str, weights: str | None = None) -> None:
        with pytest.raises(ValueError, match=re.escape(words)) as raised:
            load_network(name, weights=weights)
        assert "\n" not in str(raised.value)

    refused("comes with its own (got w.pt)", "w.pt")
    before = {file: file.read_bytes() for file in folder.iterdir()}
    for file in ("config.json", "preprocessor_config.json"):
        (folder / "code.py").write_text("raise SystemExit('the code was run')")
        change(
            folder / file, auto_map={"AutoModelForImageClassification": "code.Model", "AutoImageProcessor": "code.P"}
        )
        refused(f"needs code that the folder brings (auto_map in its {file}), and that is never run")
        (folder / file).write_bytes(before[folder / file])
        (folder / file).rename(folder / "gone")
        refused(f"lacks {file}, which save_pretrained")
        (folder / "gone").rename(folder / file)
        (folder / file).write_text("[1]")
        refused("must hold a record (got list)")
        (folder / file).write_bytes(before[folder / file])
    backbone = transformers.ViTModel(transformers.ViTConfig.from_pretrained(folder))
    backbone.save_pretrained(folder)
    change(folder / "config.json", architectures=["ViTForImageClassification"])
    refused("lacks weights of the classifier that its config.json describes: classifier.bias, classifier.weight")
    (folder / "model.safetensors").unlink()
    refused("cannot be loaded as a classifier of images (")
    torch.save(backbone.state_dict(), folder / "pytorch_model.bin")  # a pickle
    refused("cannot be loaded as a classifier of images (")
    change(folder / "config.json", model_type="bert")
    refused("cannot be loaded as a classifier of images (")


def test_what_is_no_folder_is_never_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"hf:google/vit-base must name a folder .* nothing is downloaded"):
        load_network("hf:google/vit-base")
    assert RunOptions(network="hf:model").network == f"hf:{tmp_path / 'model'}"


def test_without_the_library_one_sentence(tmp_path, monkeypatch):
    import sys

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"the network hf:.* needs transformers, which the extra huggingface brings"):
        load_network(f"hf:{tmp_path}")
