"""Networks by name: torchvision's with weights from a file, functions of the user's, and one sentence for each
mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tiny_networks
import torch
from torch import nn

from apem_fast.experiment.inputs import networks
from apem_fast.experiment.inputs.networks import load_network
from apem_fast.experiment.inputs.photographs import bundled_photographs

torchvision = pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of weights of an untrained squeezenet1_1, a small network; and of others."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng([]):
        torch.manual_seed(1)
        model = torchvision.models.squeezenet1_1()
        torch.save(model.state_dict(), folder / "squeezenet.pt")
        torch.save(torchvision.models.squeezenet1_1(num_classes=6).state_dict(), folder / "six.pt")
        torch.save(tiny_networks.pooled().state_dict(), folder / "pooled.pt")
    parallel = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": parallel}, folder / "checkpoint.pt")
    torch.save(model, folder / "object.pt")
    torch.save([1, 2], folder / "list.pt")
    (folder / "text.pt").write_text("no weights")
    (folder / "cut.pt").write_bytes((folder / "squeezenet.pt").read_bytes()[:-5000])
    return folder


@pytest.mark.parametrize("file", ["squeezenet.pt", "checkpoint.pt"])
def test_a_torchvision_network_sees_and_says_what_it_does_in_torchvision(file, weights):
    network = load_network("squeezenet1_1", weights=weights / file)
    model = torchvision.models.squeezenet1_1()
    model.load_state_dict(torch.load(weights / "squeezenet.pt", weights_only=True))
    prepare = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    for photograph in bundled_photographs()[:4]:
        picture = photograph.open()
        images = network.normalised(network.pixels(picture)[None])
        torch.testing.assert_close(images, prepare(picture)[None], rtol=0, atol=1e-6)
        assert torch.equal(network.model(images), model.eval()(images))
    assert network.categories[281] == "tabby" and len(network.categories) == 1000
    assert not network.model.training and not any(p.requires_grad for p in network.model.parameters())


def test_a_fine_tuned_torchvision_network(weights):
    assert load_network("squeezenet1_1", weights=weights / "six.pt").categories == tuple(f"class {i}" for i in range(6))


@pytest.mark.parametrize(
    "name, size, resize", [("inception_v3", 299, 342), ("vgg16", 224, 256), ("vit_b_16", 224, 256)]
)
def test_each_torchvision_network_has_its_own_preparation(name, size, resize, monkeypatch):
    monkeypatch.setattr(networks, "read_weights", lambda path: {"last": torch.zeros(1000)})
    monkeypatch.setattr(networks, "load_weights", lambda *arguments: None)
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, **options: options)
    network = networks._of_torchvision(name, "file")
    assert (network.size, network.resize, network.interpolation) == (size, resize, "bilinear")
    assert network.mean == (0.485, 0.456, 0.406) and network.std == (0.229, 0.224, 0.225)
    assert network.model.get("transform_input", False) == (name == "inception_v3")


def test_a_function_that_returns_a_module(weights):
    network = load_network("tiny_networks:pooled")
    assert network.categories == tuple(f"class {i}" for i in range(7))
    assert (network.size, network.resize, network.mean[0], network.std[0]) == (224, 256, 0.485, 0.229)
    images = torch.rand(2, 3, 224, 224)
    assert torch.equal(network.model(images), tiny_networks.pooled().eval()(images))
    changed = {name: value + 1 for name, value in tiny_networks.pooled().state_dict().items()}
    torch.save(changed, weights / "changed.pt")
    other = load_network("tiny_networks:pooled", weights=weights / "changed.pt")
    assert torch.equal(other.model[0].bias, network.model[0].bias + 1)
    assert other.digest != network.digest == load_network("tiny_networks:pooled").digest


def test_a_function_that_returns_a_network():
    network = load_network("tiny_networks:tiny")
    assert network.name == "tiny_networks:tiny" and network.size == 24 and not network.model.training
    assert network.digest == load_network("tiny_networks:tiny").digest
    assert network.digest != load_network("tiny_networks:different_every_time").digest


@pytest.mark.parametrize(
    "name, file, words",
    [
        ("resnet18", None, "resnet18 needs a file of weights: --weights FILE (nothing is downloaded)"),
        ("resnet18", "nowhere.pt", "nowhere.pt cannot be read ("),
        (
            "resnet18",
            "squeezenet.pt",
            "must be of resnet18, and is of another architecture: of its 52 tensors 0 fit the model's 102",
        ),
        ("squeezenet1_0", "squeezenet.pt", "(features.0.weight has shape (64, 3, 3, 3), not (96, 3, 7, 7))"),
        ("squeezenet1_1", "object.pt", "must hold tensors alone"),
        ("squeezenet1_1", "text.pt", "must hold tensors alone"),
        ("squeezenet1_1", "cut.pt", "must hold tensors alone"),
        ("squeezenet1_1", "list.pt", "must hold a dictionary of tensors by name (got list)"),
        ("tiny_networks:tiny", "squeezenet.pt", "must be of tiny_networks:tiny, and is of another architecture"),
        ("efficientnet-lite0", "squeezenet.pt", "efficientnet-lite0 comes with its own"),
        ("squeezenet1_2", None, "unknown network 'squeezenet1_2'; did you mean 'squeezenet1_"),
        ("tiny_networks:gone", None, "cannot be imported: "),
        ("no_such_module:gone", None, "cannot be imported: "),
        ("tiny_networks:number", None, "must return a torch.nn.Module or a Network (got int)"),
    ],
)
def test_networks_that_cannot_be_had(name, file, words, weights):
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        load_network(name, weights=None if file is None else weights / file)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "model, words",
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), "must take images (N, 3, 24, 24) (got: "),
        (nn.Conv2d(3, 5, 3), "must return logits (N, classes), at least 2 of them (got shape (1, 5, 22, 22))"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(24 * 24 * 3, 4)),
            "as many categories as outputs (got 5 categories, 4 outputs)",
        ),
    ],
)
def test_models_that_are_no_such_classifiers(model, words, monkeypatch):
    made = networks.Network("x", model, 24, (0.5,) * 3, (0.5,) * 3, tiny_networks.CATEGORIES)
    monkeypatch.setattr(tiny_networks, "tiny", lambda: made)
    with pytest.raises(ValueError, match=re.escape(words)):
        load_network("tiny_networks:tiny")


def test_networks_of_timm_come_with_their_own_preparation(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    network = load_network("timm:mobilenetv3_small_050", weights=tmp_path / "weights.pt")
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    picture = bundled_photographs()[0].open()
    images = network.normalised(network.pixels(picture)[None])
    torch.testing.assert_close(images, prepare(picture)[None], rtol=0, atol=1e-6)
    assert torch.equal(network.model(images), model(images)) and len(network.categories) == 7
    with pytest.raises(ValueError, match="did you mean 'mobilenetv3_small_0"):
        load_network("timm:mobilenetv3_small_05", weights=tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="needs a file of weights"):
        load_network("timm:mobilenetv3_small_050")


def test_exported_programs(tmp_path):
    model = tiny_networks.pooled().eval()
    dynamic = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=dynamic)
    torch.export.save(program, tmp_path / "program.pt2")
    network = load_network(str(tmp_path / "program.pt2"))
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(network.model(images), model(images))
    assert network.size == 32 and len(network.categories) == 7
    (tmp_path / "other.pt2").write_text("nothing")
    with pytest.raises(ValueError, match="cannot be read as an exported program"):
        load_network(str(tmp_path / "other.pt2"))


def test_a_function_is_named_with_a_colon_or_a_dot():
    assert load_network("tiny_networks.tiny").digest == load_network("tiny_networks:tiny").digest


@pytest.mark.slow
def test_the_table_of_networks_is_what_trying_gives():
    """A few of its lines; `network_table` makes them all."""
    pytest.importorskip("timm")
    import network_table

    written = (Path(__file__).parent.parent / "docs" / "networks.md").read_text("utf-8")
    names = ["torchvision:mobilenet_v3_small", "torchvision:swin_t", "timm:vit_tiny_patch16_224", "timm:mixer_s32_224"]
    for line in network_table.page({name: network_table.row(name) for name in names}).splitlines():
        if line.startswith("| `"):
            found = next(other for other in written.splitlines() if other.startswith(line.split(" |")[0]))
            assert [cell.strip()[:1] == "✓" for cell in line.split("|")[2:]] == [
                cell.strip()[:1] == "✓" for cell in found.split("|")[2:]
            ]
