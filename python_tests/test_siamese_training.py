"""Networks, pairs, training regimes and checkpoints of siamese/."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rankers import PIXELS, small_ranker, stripes
from torch import Tensor, nn

from apem_fast.files.checksums import tensors_with_checksum
from apem_fast.siamese import (
    ScoreRanker,
    SiameseRanker,
    TrainingOptions,
    folders,
    losses,
    pairs,
    regimes,
    tails,
    training,
)
from apem_fast.siamese.checkpoints import load_ranker, save_ranker
from apem_fast.siamese.networks import AsPixel
from apem_fast.siamese.pairs import RankedImages
from apem_fast.siamese.quality import measure_quality
from apem_fast.siamese.tails import DistanceTail, JointTail

FEW = TrainingOptions(steps=6, images=8, pairs=12, progress=False)


@pytest.mark.parametrize(
    "make, shape, size",
    [
        (SiameseRanker.for_mnist, (1, 28, 28), 7),
        (SiameseRanker.for_mnist_mirroring, (1, 28, 28), 10),
        (SiameseRanker.for_utkface, (3, 112, 112), 20),
    ],
)
def test_the_architectures_of_the_tables(make, shape: tuple[int, ...], size: int) -> None:
    ranker = make(size).eval()
    images = torch.rand(2, *shape)
    embedding = ranker.embed(images)
    assert embedding.shape == (2, size)
    assert ranker.reconstruct(embedding).shape == images.shape
    score = ranker.rank(images, images.flip(0))
    assert score.shape == (2,) and ((score >= 0) & (score <= 1)).all()
    torch.testing.assert_close(ranker.rank_embeddings(embedding, embedding.flip(0)), score)


def test_layer_sizes_are_those_of_tables_2_to_4_and_5_to_7() -> None:
    def sizes(module: nn.Module) -> list[tuple[int, ...]]:
        return [tuple(p.shape) for name, p in module.named_parameters() if name.endswith("weight") and p.dim() > 1]

    mnist, faces = SiameseRanker.for_mnist(10), SiameseRanker.for_utkface(64)
    assert sizes(mnist.branch) == [(32, 1, 3, 3), (64, 32, 3, 3), (10, 64, 7, 7)]
    assert sizes(mnist.tail) == [(4096, 20), (1, 4096)]
    assert sizes(mnist.decoder) == [(10, 128, 7, 7), (128, 128, 2, 2), (128, 1, 2, 2)]
    assert sizes(faces.branch) == [(32, 3, 4, 4), (64, 32, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (64, 256, 7, 7)]
    assert sizes(faces.tail) == [(128, 128), (1, 128)]
    assert sizes(faces.decoder) == [(64, 256, 7, 7), (256, 128, 4, 4), (128, 64, 4, 4), (64, 32, 4, 4), (32, 3, 4, 4)]


def _layers(module: nn.Module) -> list[tuple[object, ...]]:
    """Every layer in order: its kind, and of convolutions channels, kernel, stride and padding."""
    rows: list[tuple[object, ...]] = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            kind = "conv" if isinstance(layer, nn.Conv2d) else "tconv"
            sizes = layer.kernel_size, layer.stride, layer.padding
            assert all(size[0] == size[1] for size in sizes)
            rows.append((kind, layer.in_channels, layer.out_channels, *(size[0] for size in sizes)))
        elif isinstance(layer, nn.BatchNorm2d):
            rows.append(("batchnorm", layer.num_features))
        elif isinstance(layer, nn.MaxPool2d):
            rows.append(("maxpool", layer.kernel_size, layer.stride))
        elif isinstance(layer, nn.Linear):
            rows.append(("dense", layer.in_features, layer.out_features))
        elif not isinstance(layer, nn.Sequential | tails.JointTail | AsPixel):
            rows.append((type(layer).__name__,))
    return rows


def test_strides_order_and_activations_are_those_of_tables_1_to_7() -> None:
    e = 10
    up = [("tconv", e, 128, 7, 1, 0), ("ReLU",), ("tconv", 128, 128, 2, 2, 0), ("ReLU",), ("tconv", 128, 1, 2, 2, 0)]
    decoder = [*up, ("ClippedReLU",)]
    mirroring, mnist, faces = (
        make(e) for make in (SiameseRanker.for_mnist_mirroring, SiameseRanker.for_mnist, SiameseRanker.for_utkface)
    )
    assert _layers(mirroring.branch) == [  # Table 1
        ("conv", 1, 64, 5, 1, 2),
        ("ReLU",),
        ("maxpool", 2, 2),
        ("conv", 64, 128, 3, 1, 1),
        ("ReLU",),
        ("maxpool", 2, 2),
        ("conv", 128, 128, 3, 1, 1),
        ("ReLU",),
        ("conv", 128, e, 7, 1, 0),
    ]
    assert _layers(mirroring.decoder) == _layers(mnist.decoder) == decoder  # Tables 1 and 4
    assert _layers(mnist.branch) == [  # Table 2
        ("conv", 1, 32, 3, 2, 1),
        ("ReLU",),
        ("conv", 32, 64, 3, 2, 1),
        ("ReLU",),
        ("conv", 64, e, 7, 1, 0),
    ]
    for ranker, hidden in ((mnist, 4096), (faces, 2 * e)):  # Tables 3 and 6
        assert _layers(ranker.tail) == [("dense", 2 * e, hidden), ("Sigmoid",), ("dense", hidden, 1), ("Sigmoid",)]
    down, back = [], []
    for before, after in ((3, 32), (32, 64), (64, 128), (128, 256)):
        down += [("conv", before, after, 4, 2, 1), ("ReLU",), ("batchnorm", after)]
    assert _layers(faces.branch) == [*down, ("conv", 256, e, 7, 1, 0)]  # Table 5
    for before, after in ((256, 128), (128, 64), (64, 32)):
        back += [("tconv", before, after, 4, 2, 1), ("ReLU",), ("batchnorm", after)]
    first = [("tconv", e, 256, 7, 1, 0), ("ReLU",), ("batchnorm", 256)]
    assert _layers(faces.decoder) == [*first, *back, ("tconv", 32, 3, 4, 2, 1), ("ClippedReLU",)]  # Table 7


def _first_loss(regime: Callable[..., Any], ranker: SiameseRanker, **options: Any) -> tuple[float, Any]:
    """The loss of a regime's first step, and the batch that it was of; the ranker is as it was before that step."""
    batches, draw = [], training._draw

    def drawing(*arguments: Any) -> Any:
        batches.append(draw(*arguments))
        return batches[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_draw", drawing)
        once = TrainingOptions(steps=1, images=6, pairs=5, progress=False)
        result = regime(copy.deepcopy(ranker), stripes(), once, **options)
    last = result[-1] if isinstance(result, tuple) else result
    return float(last.losses[0]), batches[-1]


def test_the_losses_of_equations_27_33_and_36_by_value() -> None:
    ranker = small_ranker(dtype=torch.float32)

    def image_error(a: Tensor, h: Tensor) -> float:
        return sum(float(((a[i] - h[i]) ** 2).sum()) for i in range(len(a))) / len(a)

    def trained(module: nn.Module) -> nn.Module:
        return copy.deepcopy(module).train()  # batch normalisation sees the batch, as it does in training

    # E27: k * MSE(target, prediction) + MSE(A, p(e_A)) + MSE(B, p(e_B)), sums of squares over an image.
    loss, batch = _first_loss(regimes.train_simultaneous, ranker, ranking_weight=70.0)
    with torch.no_grad():
        e = trained(ranker.branch)(batch.images).flatten(1)
        prediction = ranker.tail(e[batch.first], e[batch.second])
        ranking = sum(float((t - c) ** 2) for t, c in zip(batch.target, prediction, strict=True)) / 5
        images = image_error(batch.images, ranker.decoder(e))
    assert loss == pytest.approx(70 * ranking + 2 * images, rel=1e-5)

    # E33: MSE(A, p(e)) + (1 - |e|)^2.
    loss, batch = _first_loss(regimes.train_autoencoder, ranker, regularisation="norm")
    with torch.no_grad():
        e = trained(ranker.branch)(batch.images).flatten(1)
        norms = sum((1 - float(row.norm())) ** 2 for row in e) / len(e)
        images = image_error(batch.images, ranker.decoder(e))
    assert loss == pytest.approx(images + norms, rel=1e-5)

    # E36: MSE(A, p(e_encoder)) + k * MSE(e_siamese, e_encoder), of an encoder of its own.
    siamese, encoders = [], []

    class Seen(SiameseRanker):
        def reconstruct(self, embedding: Tensor) -> Tensor:
            encoders.append(embedding.detach().clone())
            return super().reconstruct(embedding)

        def embed(self, images: Tensor) -> Tensor:
            siamese.append(super().embed(images))
            return siamese[-1]

    seen = Seen(ranker.branch, ranker.tail, ranker.decoder)
    loss, batch = _first_loss(regimes.train_mirroring, seen, mirror_weight=3.0)
    with torch.no_grad():
        images = image_error(batch.images, ranker.decoder(encoders[-1]))
        apart = float(((siamese[-1].detach() - encoders[-1]) ** 2).mean())
    assert loss == pytest.approx(images + 3 * apart, rel=1e-5)


def test_a_network_that_learnt_nothing_is_known_by_its_deviation() -> None:
    data = stripes(40)
    quality = measure_quality(small_ranker(dtype=torch.float32), data)
    assert not quality.learnt
    assert f"{quality.baseline:.3f}" in quality.warning

    class Widths(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(1, 2, 3)) * PIXELS - 1

    right = measure_quality(ScoreRanker(Widths(), 0, 9).eval(), data)
    assert right.learnt
    assert right.warning == ""
    assert right.mean_deviation == pytest.approx(0, abs=1e-6)


def test_targets_of_equations_13_15_32_and_37() -> None:
    a, b = torch.tensor([150.0, 8.0, 3.0]), torch.tensor([200.0, 5.0, 3.0])
    assert float(pairs.metric_target(torch.tensor(100.0), torch.tensor(200.0), 50, 400)) == pytest.approx(
        0.357, abs=1e-3
    )
    torch.testing.assert_close(pairs.metric_target(a[1:], b[1:], 0, 9), torch.tensor([3 / 18 + 0.5, 0.5]))
    assert pairs.binary_target(a, b).tolist() == [0.0, 1.0, 1.0]  # a tie counts as A above B


def test_digits_and_pairs() -> None:
    data = pairs.digits()
    assert data.images.shape == (1797, 1, 28, 28)
    assert float(data.images.min()) >= 0 and 0.9 < float(data.images.max()) <= 1
    dataset = pairs.PairDataset(data, 50, torch.Generator().manual_seed(0))
    for (a, b, target), i, j in zip(dataset, dataset.first, dataset.second, strict=True):
        assert torch.equal(a, data.images[i]) and torch.equal(b, data.images[j])
        assert float(target) == pytest.approx(float(data.values[i] - data.values[j]) / 18 + 0.5, abs=1e-6)
    learnt, held_out = data.split(0.2, torch.Generator().manual_seed(0))
    assert len(learnt) + len(held_out) == 1797 and len(held_out) == 359
    shuffled = learnt.with_shuffled_values(torch.Generator().manual_seed(0))
    assert torch.equal(shuffled.values.sort().values, learnt.values.sort().values)
    assert not torch.equal(shuffled.values, learnt.values)


def test_a_split_is_remembered_by_contents_and_names() -> None:
    data = stripes(40)
    data = replace(data, images=data.images + torch.arange(40)[:, None, None, None] / 1e4)  # no two alike
    learnt, held_out = data.split(0.25, torch.Generator().manual_seed(0))
    assert len(learnt) == 30 and len(held_out) == 10
    again = data.without(learnt.keys())
    assert torch.equal(again.values.sort().values, held_out.values.sort().values)
    # One image added at the front moves every place, and nothing else.
    more = RankedImages(
        torch.cat([torch.full_like(data.images[:1], 0.7), data.images]), torch.cat([torch.ones(1), data.values]), 0, 9
    )
    added = more.without(learnt.keys())
    assert len(added) == 11
    assert {image.sum().item() for image in added.images[1:]} == {image.sum().item() for image in again.images}
    # A file that was encoded anew is recognised by its name, one that was renamed by its contents.
    named = replace(data, names=tuple(f"{i}.png" for i in range(40)))
    part = named.subset(torch.arange(30))
    renamed = replace(named, names=tuple(f"new {i}.png" for i in range(40)))
    encoded = replace(named, images=named.images + 0.001)
    for changed in (renamed, encoded):
        assert len(changed.without(part.keys())) == 10
    with pytest.raises(ValueError, match="the ranker must not have learnt from every image there is"):
        data.without(data.keys())


def test_copies_of_an_image_fall_on_one_side() -> None:
    data = pairs.digits()
    data = data.subset(torch.arange(30).repeat(3))
    learnt, held_out = data.split(0.2, torch.Generator().manual_seed(1))
    assert len(learnt) + len(held_out) == 90 and len(held_out) > 0
    assert not set(learnt.digests) & set(held_out.digests)


def test_shuffled_targets_are_a_permutation_of_the_pairs() -> None:
    data = stripes(23)
    first, second = (index.flatten() for index in torch.meshgrid(torch.arange(23), torch.arange(23), indexing="ij"))
    shuffled = data.with_shuffled_targets(torch.Generator().manual_seed(0))
    true, other = data.target(first, second), shuffled.target(first, second)
    assert torch.equal(true.sort().values, other.sort().values), "the same targets, one for each pair"
    assert torch.equal(other, shuffled.target(first, second)), "and the same at every visit"
    correlation = torch.corrcoef(torch.stack([true, other]))[0, 1]
    assert abs(float(correlation)) < 0.12
    # Nothing is left that an attribute of each image could explain: rows and columns have the means of noise.
    by_image = other.view(23, 23).mean(dim=1).std() / (true.std() / 23**0.5)
    assert 0.5 < float(by_image) < 1.6
    assert float(true.view(23, 23).mean(dim=1).std() / (true.std() / 23**0.5)) > 3


def test_no_pair_is_measured_of_an_image_with_itself() -> None:
    first, second = stripes(7).draw_pairs(500, torch.Generator().manual_seed(0))
    assert (first != second).all() and set(zip(first.tolist(), second.tolist())).__len__() == 42
    data, ranker = stripes(12), small_ranker(dtype=torch.float32)
    quality = measure_quality(ranker, data)
    deviation, constant = [], []
    for i in range(12):
        for j in range(12):
            if i != j:
                target = float(data.values[i] - data.values[j]) / 18 + 0.5
                score = float(ranker.rank(data.images[i : i + 1], data.images[j : j + 1]).detach())
                deviation.append(abs(score - target))
                constant.append(abs(0.5 - target))
    assert quality.pairs == 132
    assert quality.mean_deviation == pytest.approx(sum(deviation) / 132, abs=1e-6)
    assert quality.baseline == pytest.approx(sum(constant) / 132, abs=1e-6)


def test_first_weights_spread_any_embedding_over_the_sigmoids() -> None:
    for scale in (1e-3, 1.0, 50.0):
        embedding = scale * torch.randn(64, 5)
        tail = JointTail(5, 32).scale_to(embedding)
        hidden = tail.layers[0](torch.cat([embedding, embedding.roll(1, 0)], dim=1))
        assert float(hidden.std(dim=0).mean().detach()) == pytest.approx(tails.SPREAD, rel=1e-3)
    for ranker, images in (
        (SiameseRanker.for_mnist(8), pairs.digits().images[:64]),
        (SiameseRanker.for_utkface(8), None),
    ):
        images = torch.nn.functional.interpolate(torch.rand(32, 3, 5, 5), size=(112, 112)) if images is None else images
        embedding = ranker.branch.train()(images).flatten(1)
        hidden = ranker.tail.layers[0](torch.cat([embedding, embedding.roll(1, 0)], dim=1))
        assert 0.3 * tails.SPREAD < float(hidden.std(dim=0).mean().detach()) < 3 * tails.SPREAD
    statistics = [module for module in SiameseRanker.for_utkface(8).branch if isinstance(module, nn.BatchNorm2d)]
    assert all((bn.running_mean == 0).all() and bn.num_batches_tracked == 0 for bn in statistics)


def test_mnist_is_read_from_torchvisions_folder(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images, labels = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8), torch.tensor([7, 0, 9, 1, 7])
    for part in ("train", "t10k"):  # torchvision wants both parts
        header = b"".join(n.to_bytes(4, "big") for n in (0x803, 5, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        header = b"".join(n.to_bytes(4, "big") for n in (0x801, 5))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.to(torch.uint8).numpy().tobytes())
    data = pairs.mnist(tmp_path)
    assert torch.equal(data.images[:, 0], images) and data.values.tolist() == [7, 0, 9, 1, 7]
    assert (data.low, data.high, data.attribute) == (0, 9, "digit")


def test_a_folder_of_faces_lists_what_it_skips(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("30_0_1_20170116.jpg", "7_1_0_20170117.chip.jpg", "old_0_0_1.jpg", "200_0_0_1.jpg", "12.jpg"):
        Image.new("RGB", (40, 50), (200, 100, 50)).save(tmp_path / name, "JPEG")
    (tmp_path / "44_0_0_2017.jpg").write_text("no image")
    data = folders.utkface(tmp_path, pixels=16)
    assert data.images.shape == (2, 3, 16, 16) and data.images.dtype == torch.uint8
    assert data.values.tolist() == [30, 7]
    assert data.skipped == ("12.jpg", "200_0_0_1.jpg", "44_0_0_2017.jpg", "old_0_0_1.jpg")
    torch.testing.assert_close(
        data.batch(slice(0, 1))[0, :, 8, 8], torch.tensor([200, 100, 50]) / 255, rtol=0, atol=0.02
    )
    with pytest.raises(ValueError, match="utkface: folder must be a folder of images"):
        folders.utkface(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"utkface: folder must hold images named age_gender_race_date\.jpg"):
        folders.utkface(tmp_path / "empty")
    with pytest.raises(ValueError, match="mnist: folder must hold torchvision's MNIST"):
        pairs.mnist(tmp_path)


def test_contrastive_and_triplet_losses_literally() -> None:
    distance, similar = torch.tensor([0.3, 0.4, 2.0]), torch.tensor([True, False, False])
    expected = (0.5 * 0.3**2 + 0.5 * (1 - 0.4) ** 2 + 0) / 3
    assert float(losses.contrastive_loss(distance, similar, 1.0)) == pytest.approx(expected)
    anchor, positive, negative = (
        torch.zeros(2, 2),
        torch.tensor([[3.0, 4.0], [0.0, 0.1]]),
        torch.tensor([[1.0, 0.0], [0.0, 9.0]]),
    )
    assert float(losses.triplet_loss(anchor, positive, negative, 0.5)) == pytest.approx((5 - 1 + 0.5) / 2)


REGIMES = {
    "simultaneous": (lambda r, d, o: regimes.train_simultaneous(r, d, o), {"branch", "tail", "decoder"}),
    "autoencoder": (lambda r, d, o: regimes.train_autoencoder(r, d, o), {"branch", "decoder"}),
    "norm": (lambda r, d, o: regimes.train_autoencoder(r, d, o, regularisation="norm"), {"branch", "decoder"}),
    "variational": (
        lambda r, d, o: regimes.train_autoencoder(r, d, o, regularisation="variational"),
        {"branch", "decoder"},
    ),
    "tail": (regimes.train_tail, {"tail"}),
    "ranking": (regimes.train_ranking, {"branch", "tail"}),
    "fine-tuning": (regimes.fine_tune, {"branch", "tail"}),
    "mirroring": (regimes.train_mirroring, {"branch", "tail", "decoder"}),
    "autoencoder first": (regimes.train_autoencoder_first, {"branch", "tail", "decoder"}),
    "contrastive": (regimes.train_contrastive, {"branch"}),
    "triplet": (regimes.train_triplet, {"branch"}),
}


@pytest.mark.parametrize("regime", REGIMES)
def test_a_regime_trains_its_part_and_nothing_else(regime: str) -> None:
    run, parts = REGIMES[regime]
    ranker = small_ranker(dtype=torch.float32).train()
    before, random = copy.deepcopy(ranker.state_dict()), torch.get_rng_state()
    results = run(ranker, stripes(), FEW)
    for result in results if isinstance(results, tuple) else (results,):
        assert result.losses.shape == (6,) and result.losses.isfinite().all()
    changed = {
        name.split(".")[0] for name, value in ranker.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == parts
    assert not any(module.training for module in ranker.modules())
    assert all(p.grad is None for p in ranker.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("regime", [regimes.train_simultaneous, regimes.train_autoencoder_first])
def test_training_resumes_to_the_same_numbers(regime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = TrainingOptions(
        steps=8, images=8, pairs=12, shift=1, progress=False, checkpoint=tmp_path / "run.pt", checkpoint_every=3
    )
    whole = small_ranker(dtype=torch.float32)
    regime(whole, stripes(), TrainingOptions(steps=8, images=8, pairs=12, shift=1, progress=False))

    class Stopped(Exception):
        pass

    draws, draw = [], training._draw

    def stopping(*arguments):
        draws.append(1)
        if len(draws) == 6:
            raise Stopped
        return draw(*arguments)

    monkeypatch.setattr(training, "_draw", stopping)
    resumed = small_ranker(dtype=torch.float32)
    with pytest.raises(Stopped):
        regime(resumed, stripes(), options)
    monkeypatch.setattr(training, "_draw", draw)
    resumed = small_ranker(dtype=torch.float32)
    result = regime(resumed, stripes(), options)
    assert (result[0] if isinstance(result, tuple) else result).resumed_from == 3
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


def test_a_checkpoint_of_something_else_gets_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "run.pt"
    options = TrainingOptions(steps=2, images=4, pairs=4, progress=False, checkpoint=path)
    regimes.train_ranking(small_ranker(dtype=torch.float32), stripes(), options)
    other = SiameseRanker.for_branch(nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1), nn.Conv2d(6, 4, 6)), 4)
    with pytest.raises(ValueError, match=r"train_ranking: checkpoint must be of the architecture of ranker, whose "):
        regimes.train_ranking(other, stripes(), options)
    with pytest.raises(ValueError, match=r"fine_tune: checkpoint must be of this regime \(got train_ranking in "):
        regimes.fine_tune(small_ranker(dtype=torch.float32), stripes(), options)
    with pytest.raises(ValueError, match=r"train_tail: checkpoint must be of this regime \(got train_ranking in "):
        regimes.train_tail(small_ranker(dtype=torch.float32), stripes(), options)
    with pytest.raises(ValueError, match=r"train_ranking: seed must be that of the checkpoint, 0 \(got 1; "):
        regimes.train_ranking(small_ranker(dtype=torch.float32), stripes(), replace(options, seed=1))
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="train_ranking: checkpoint must be one that apem_fast wrote"):
        regimes.train_ranking(small_ranker(dtype=torch.float32), stripes(), options)


def test_saved_rankers_come_back(tmp_path: Path) -> None:
    ranker = SiameseRanker.for_mnist(3).eval()
    save_ranker(tmp_path / "ranker.pt", ranker, "mnist", 3, images="digits", seed=4)
    again, facts = load_ranker(tmp_path / "ranker.pt")
    assert facts == {"images": "digits", "seed": 4, "architecture": "mnist", "size": 3}
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(again.rank(images, images.flip(0)), ranker.rank(images, images.flip(0)))
    content = torch.load(tmp_path / "ranker.pt", weights_only=True)
    (tmp_path / "ranker.pt").write_bytes(tensors_with_checksum(content | {"size": 5}))
    with pytest.raises(
        ValueError, match=r"load_ranker: checkpoint must be of the architecture of ranker, whose branch"
    ):
        load_ranker(tmp_path / "ranker.pt")
    with pytest.raises(ValueError, match="load_ranker: checkpoint must be a file that exists"):
        load_ranker(tmp_path / "absent.pt")


def test_a_folder_that_vanished_is_not_made_again_without_a_word(tmp_path: Path) -> None:
    """The checkpoint went with it, and whatever else was there: not the moment to speak of success."""
    path = tmp_path / "new" / "training.pt"
    options = TrainingOptions(steps=2, images=4, pairs=4, progress=False, checkpoint=path, checkpoint_every=1)
    regimes.train_ranking(small_ranker(dtype=torch.float32), stripes(), options)
    assert path.exists()  # a folder that is not there yet is made before the first step
    shutil.rmtree(path.parent)
    with pytest.raises(ValueError, match=r"ranker.pt cannot be written \(No such file or directory\)"):
        save_ranker(path.with_name("ranker.pt"), SiameseRanker.for_mnist(3), "mnist", 3)
    assert not path.parent.exists()


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "harm",)

    content = {"kind": "apem_fast siamese ranker, 1", "state": Harmful()}
    (tmp_path / "ranker.pt").write_bytes(tensors_with_checksum(content))
    with pytest.raises(ValueError, match="checkpoint must be one that apem_fast wrote"):
        load_ranker(tmp_path / "ranker.pt")
    assert not (tmp_path / "harm").exists()


def test_a_tiny_ranker_learns_widths() -> None:
    ranker = small_ranker(dtype=torch.float32)
    data = stripes(200)
    before = measure_quality(ranker, data)
    options = TrainingOptions(steps=500, images=32, pairs=64, learning_rate=2e-3, progress=False)
    regimes.train_simultaneous(ranker, data, options)
    after = measure_quality(ranker, data)
    assert after.mean_deviation < 0.08 < before.mean_deviation
    assert after.order_accuracy > 0.9
    assert after.reconstruction_error < before.reconstruction_error / 2


def test_a_similarity_ranker_tells_like_from_unlike() -> None:
    data = stripes(200)
    branch = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS * PIXELS, 8), nn.Tanh(), nn.Linear(8, 2))
    ranker = SiameseRanker(branch, DistanceTail(0.5))
    options = TrainingOptions(steps=150, images=32, pairs=64, learning_rate=1e-2, progress=False)
    regimes.train_contrastive(ranker, data, options, within=1)
    score = ranker.rank(data.batch(slice(0, 100)), data.batch(slice(100, 200))).detach()
    apart = (data.values[:100] - data.values[100:]).abs()
    assert float(score[apart == 0].mean()) > 0.7
    assert float(score[apart >= 4].mean()) < 0.2


@pytest.mark.slow
def test_the_digits_ranker_is_as_good_as_p3_asks() -> None:
    learnt, held_out = pairs.digits().split(0.2, torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ranker = SiameseRanker.for_mnist(16)
    options = TrainingOptions(steps=1200, images=64, learning_rate=2e-3, progress=False)
    regimes.train_simultaneous(ranker, learnt, options)
    quality = measure_quality(ranker, held_out)
    assert quality.mean_deviation <= 0.05
    assert quality.reconstruction_error <= 0.08
