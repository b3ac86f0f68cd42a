"""Maps that exist already: every kind of file, matched by the image's name, measured like computed ones."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_networks
import torch
from PIL import Image

from apem_fast.cli.evaluate import stored_maps_named
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import Photograph
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.explain import StoredMaps, explainer_from, key_of

IMAGES = torch.zeros(1, 3, 8, 8)
VALUES = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, map=values)
    elif path.suffix == ".pt":
        torch.save(torch.from_numpy(values), path)
    else:
        Image.fromarray(values).save(path)
    return path


def looked_up(folder, name="cat"):
    return StoredMaps(str(folder)).for_images([name])(torch.nn.Identity().eval(), IMAGES)


@pytest.mark.parametrize(
    "file, values, scale",
    [
        ("cat.npy", VALUES.astype(np.float32) - 100, 1),
        ("cat.npz", VALUES.astype(np.float64)[None], 1),
        ("cat.pt", VALUES.astype(np.float16), 1),
        ("cat.png", VALUES, 1),
        ("cat.png", VALUES.astype(np.uint16) * 257, 257),
        ("animals/cat.npy", VALUES.astype(np.float32), 1),
    ],
)
def test_every_kind_of_file(file, values, scale, tmp_path):
    save(tmp_path / file, values)
    came = looked_up(tmp_path, "animals-cat" if "/" in file else "cat")
    expected = torch.from_numpy(values.astype(np.float32)).reshape(8, 8)
    assert torch.equal(came, expected.expand(1, 3, 8, 8))
    assert torch.equal(came[0, 0] / scale + (100 if values.min() < 0 else 0), torch.from_numpy(VALUES).float())


def test_maps_of_three_channels_and_other_sizes(tmp_path):
    values = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)
    save(tmp_path / "first.npy", values)
    save(tmp_path / "last.npy", values.transpose(1, 2, 0))
    save(tmp_path / "small.npy", np.array([[0.0, 1.0], [2.0, 3.0]]))
    assert torch.equal(looked_up(tmp_path, "first"), torch.from_numpy(values)[None])
    assert torch.equal(looked_up(tmp_path, "last"), torch.from_numpy(values)[None])
    small = looked_up(tmp_path, "small")
    assert small[0, 0, 0, 0] == 0 and small[0, 2, 7, 7] == 3 and small.unique().numel() > 4


@pytest.mark.parametrize(
    "file, contents, words",
    [
        ("cat.npy", np.zeros((8, 16)), "size of the same proportions .got 8 by 16."),
        ("cat.npy", np.zeros((5, 8, 8)), r"must have shape .*got \(5, 8, 8\)"),
        ("cat.npy", np.array(["a"]), "must hold numbers"),
        ("dog.npy", np.zeros((8, 8)), "must hold one map of cat .got none."),
        ("cat.pt", None, "cannot be read as one map"),
    ],
)
def test_files_that_are_no_map_of_the_image(file, contents, words, tmp_path):
    if contents is None:
        (tmp_path / file).write_text("no tensor")
    else:
        save(tmp_path / file, contents)
    with pytest.raises(ValueError, match=words):
        looked_up(tmp_path)


def test_two_files_of_one_image_and_folders_without_any(tmp_path):
    with pytest.raises(ValueError, match="must be a folder with npy, npz, pt, png files"):
        StoredMaps(str(tmp_path))
    save(tmp_path / "cat.npy", VALUES)
    save(tmp_path / "cat.png", VALUES)
    with pytest.raises(ValueError, match=r"one map of cat .got cat.npy and cat.png."):
        looked_up(tmp_path)
    with pytest.raises(ValueError, match="folder must be given"):
        explainer_from("maps")
    with pytest.raises(ValueError, match="NAME=FOLDER"):
        stored_maps_named("folder")


def test_a_run_measures_them_beside_computed_ones(tmp_path, monkeypatch):
    """Maps of the gradient, saved: the same epsilons. An image without a map is flagged and stops nobody."""
    monkeypatch.chdir(tmp_path)
    network = load_network("tiny_networks:tiny")
    for number in range(3):
        tiny_networks.save_photograph(tmp_path / "photos" / f"image {number}.png", number)
    for number in range(2):
        with Image.open(tmp_path / "photos" / f"image {number}.png") as picture:
            images = network.normalised(network.pixels(picture)[None])
        gradient = explainer_from("gradient")(network.model, images)[0]
        save(tmp_path / "my: maps" / f"image {number}.npy", gradient.numpy())
    explainers = ("gradient", stored_maps_named("mine=my: maps"))
    options = RunOptions(network="tiny_networks.tiny", images="photos", explainers=explainers, max_epsilon=64)
    table = evaluate(options, tmp_path / "run").results().set_index(["explainer", "stage", "image"])
    gradient, mine = (table.loc[key] for key in options.explainers)
    assert key_of(explainer_from(options.explainers[1])) == options.explainers[1]
    kept = [index for index in gradient.index if index[1] != "image_2"]
    for column in ("epsilon_minus", "epsilon_plus", "score"):
        assert (mine.loc[kept, column] == gradient.loc[kept, column]).all()
    assert set(mine.loc[[index for index in mine.index if index[1] == "image_2"], "flag"]) == {
        "there is no map of this image"
    }


def failing(model, images, labels):
    raise KeyError("my key")


def test_an_exception_of_the_users_names_the_explainer_the_image_and_the_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_networks.save_photograph(tmp_path / "photos" / "one.png", 0)
    options = RunOptions(network="tiny_networks:tiny", images="photos", explainers=(f"{__name__}.failing",))
    with pytest.raises(ValueError, match=r"explainer failing on image one: KeyError: 'my key'\n.*test_stored_maps.py:"):
        evaluate(options, tmp_path / "run")


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_grey_photographs_of_many_bits_are_scaled(mode, tmp_path):
    """Pillow would clip them to white."""
    values = np.linspace(0, 65535, 64).reshape(8, 8)
    if mode == "F":
        Image.fromarray((values / 65535).astype(np.float32)).save(tmp_path / "grey.tif")
    elif mode == "I":
        Image.fromarray(values.astype(np.int32)).save(tmp_path / "grey.tif")
    else:
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / "grey.png")
    (file,) = tmp_path.iterdir()
    opened = np.asarray(Photograph("grey", "", (), "", file).open())
    assert opened.shape == (8, 8, 3) and np.abs(opened[..., 1] - values / 257).max() <= 0.51


def test_grey_values_of_an_unknown_scale_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 300.0, np.float32)).save(tmp_path / "grey.tif")
    with pytest.raises(OSError, match=r"grey values in .* were expected"):
        Photograph("grey", "", (), "", tmp_path / "grey.tif").open()
