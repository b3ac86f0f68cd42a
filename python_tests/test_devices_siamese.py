"""Rankers on a pretended GPU (see `pretended.py`): attacks, what is drawn of them, training and checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from both_devices import check, everywhere, made_on_cpu, nowhere
from pretended import PretendedGPU
from rankers import small_pairs, small_ranker, stripes
from torch import Tensor

from apem_fast.siamese import TrainingOptions, regimes, training
from apem_fast.siamese import comparisons as validation
from apem_fast.siamese.attacking import attack, mid_point_attack
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.one_step import one_step_attack
from apem_fast.siamese.perception import interpolate_perceptions, perceive, perception_change
from apem_fast.siamese.quality import measure_quality
from apem_fast.siamese.recycling import recycle
from apem_fast.siamese.report import agreement, explanations, published
from apem_fast.siamese.report.page import write_page
from apem_fast.siamese.saliency import saliency_map, superimpose, superpixels, tessellate
from apem_fast.siamese.sanity import cascading_randomisation

STEPS = {"steps": 12, "step_size": 2.0}


def ranker_and_pairs(device: str, channels: int = 1) -> tuple[Ranker, Tensor, Tensor]:
    ranker = made_on_cpu(small_ranker, channels=channels).to(device)
    first, second = made_on_cpu(small_pairs, 4, channels=channels)
    return ranker, first.to(device), second.to(device)


@pytest.fixture(autouse=True)
def one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same memory format on both devices: another one adds in another order, and results are compared exactly."""
    monkeypatch.setattr(
        "apem_fast.siamese.attacking.channels_last_on_cpu", lambda *_: nullcontext(torch.contiguous_format)
    )


# -- attacks -----------------------------------------------------------------------------------------------------


def test_attacks_stay_on_the_device() -> None:
    def case(device: str) -> Any:
        pairs = ranker_and_pairs(device)
        region = torch.zeros(pairs[1].shape[2:], dtype=torch.bool, device="cpu")  # as a user makes it
        region[2:9] = True
        forces = {"tv_force": 1e-4, "zero_force": 1e-5, "diff_force": 0.1}
        return (
            attack(*pairs, 0.0, **STEPS, perceptions_at=(0, 3, 12)),
            attack(*pairs, torch.tensor([0.0, 1.0, 0.5, 0.2]), **STEPS, region=region, damping=0.5),
            attack(*pairs, 1.0, **STEPS, space="embedding", stop_when_reached=True, perceptions_at=(5,)),
            mid_point_attack(*pairs, **STEPS, **forces, batch_size=3),
            mid_point_attack(*pairs, **STEPS, region=region.expand(4, 1, -1, -1), bounds=(0.0, 1.0)),
            one_step_attack(*pairs, 0.5, region=region),
            one_step_attack(*pairs, 0.5, distance=torch.ones(4)),
        )

    check(case, everywhere)


def test_views_of_attacks_stay_on_the_device() -> None:
    def case(device: str) -> Any:
        ranker, first, second = ranker_and_pairs(device, channels=3)
        perturbed = attack(ranker, first, second, 0.0, **STEPS).perturbed
        saliency = saliency_map(first, perturbed)
        return (
            perceive(ranker, first),
            perception_change(ranker, first, perturbed),
            interpolate_perceptions(ranker, first, second, 3),
            recycle(ranker, first, second, perturbed),
            saliency,
            superimpose(first, saliency),
            validation.mid_point_sensitivity(ranker, perturbed, second),
            validation.angle(perturbed - first, second - first),
        )

    check(case, everywhere)


def maps(ranker: Ranker, first: Tensor, second: Tensor) -> dict[str, Tensor]:
    return {"attack": saliency_map(first, attack(ranker, first, second, 0.0, steps=3, step_size=2.0).perturbed)}


def test_figures_of_attacks() -> None:
    def case(device: str) -> Any:
        ranker, first, second = ranker_and_pairs(device, channels=3)
        saliency, labels = maps(ranker, first, second)["attack"], superpixels(first, 6)
        return (
            tessellate(first, saliency, 6),
            labels,
            validation.masking_importance(ranker, first, second, labels),
            validation.masking_agreement(ranker, first, second, saliency, labels),
            validation.masking_agreement(ranker, first, second, saliency, labels.to(device)),
            cascading_randomisation(ranker, first, second, maps).correlation,
        )

    check(case, nowhere)


def test_comparisons_of_attacks() -> None:
    def case(device: str) -> Any:
        pairs = ranker_and_pairs(device)
        return (
            validation.compare_one_and_many_steps(*pairs, 0.0, **STEPS),
            validation.compare_mid_point_and_boundary(*pairs, **STEPS),
        )

    check(case, lambda path: path.split(".")[2] in ("first", "second"))


def test_the_pages(tmp_path: Path) -> None:
    def case(device: str) -> Any:
        ranker = made_on_cpu(small_ranker, dtype=torch.float32).to(device)
        data = made_on_cpu(stripes).to(device)
        first, second = explanations.choose_pairs(data, 4, seed=0)
        a, b = data.batch(first), data.batch(second)
        short = {"steps": 3}
        quality = measure_quality(ranker, data, pairs=50)
        sections = [
            explanations.perception_section(ranker, data, 3),
            explanations.progression_section(ranker, data, first, second, **short),
            explanations.maps_section(ranker, data, first, second, **short),
            explanations.advanced_section(ranker, data, first, second, **short),
            explanations.recycling_section(ranker, data, first, second, **short),
            published.target_section(ranker, data),
            published.one_and_many_section(ranker, data, first, second, **short),
            published.boundary_section(ranker, data, first, second),
            agreement.regime_section({"simultaneous": quality}),
            agreement.agreement_section(ranker, quality, a, b, **short),
            agreement.parameter_section(ranker, a, b, **short),
            agreement.label_section(ranker, {"targets": agreement.Relabelled(ranker, quality, quality)}, a, b, **short),
        ]
        path = write_page(tmp_path / "page.html", "Title", "Lead", [], sections)
        return path.with_suffix(".json").read_text()

    check(case, nowhere)


def test_an_attack_reads_once_a_step() -> None:
    def waits(steps: int, **options: Any) -> int:
        with PretendedGPU() as gpu:
            pairs = ranker_and_pairs("cuda")
            gpu.waits.clear()
            attack(*pairs, 1.0, steps=steps, step_size=1e-3, **options)
        return sum(gpu.waits.values())

    assert waits(5) == waits(25)
    assert waits(25, stop_when_reached=True) - waits(5, stop_when_reached=True) == 20


# -- training ----------------------------------------------------------------------------------------------------

TRAINING = TrainingOptions(steps=4, images=8, pairs=12, shift=1, progress=False, checkpoint_every=2)
REGIMES: dict[str, Callable[..., Any]] = {
    "simultaneous": regimes.train_simultaneous,
    "autoencoder first": regimes.train_autoencoder_first,
    "variational": lambda *arguments: regimes.train_autoencoder(*arguments, regularisation="variational"),
    "mirroring": regimes.train_mirroring,
    "contrastive": regimes.train_contrastive,
    "triplet": regimes.train_triplet,
}


def trained(regime: str, device: str, images_on: str, options: TrainingOptions = TRAINING) -> Any:
    ranker, data = made_on_cpu(small_ranker, dtype=torch.float32).to(device), made_on_cpu(stripes).to(images_on)
    result = REGIMES[regime](ranker, data, options)
    return {"ranker": ranker, "training": result, "quality": measure_quality(ranker, data, pairs=200)}


@pytest.mark.parametrize("images_on", ["the device", "cpu"])
@pytest.mark.parametrize("regime", REGIMES)
def test_training(regime: str, images_on: str) -> None:
    """A ranker on the device learns from images wherever they are."""

    def case(device: str) -> Any:
        return trained(regime, device, device if images_on == "the device" else "cpu")

    check(case, lambda path: path.startswith(".ranker") or ".encoder." in path)


@pytest.mark.parametrize("begins_on", ["cuda", "cpu"])
def test_a_checkpoint_goes_on_on_another_device(begins_on: str, tmp_path: Path, monkeypatch) -> None:
    expected = trained("simultaneous", "cpu", "cpu")["training"].losses
    options = replace(TRAINING, checkpoint=tmp_path / "training.pt")
    draw, drawn = training._draw, []

    def stopping(*arguments: Any) -> training.Batch:
        drawn.append(arguments)
        if len(drawn) == 4:
            raise KeyboardInterrupt
        return draw(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt), PretendedGPU():
        patched.setattr(training, "_draw", stopping)
        trained("simultaneous", begins_on, "cpu", options)
    with PretendedGPU():
        resumed = trained("simultaneous", {"cpu": "cuda", "cuda": "cpu"}[begins_on], "cpu", options)["training"]
    assert resumed.resumed_from == 2
    assert torch.equal(resumed.losses, expected)


def test_training_changes_no_random_state() -> None:
    with PretendedGPU() as gpu:
        ranker, data = small_ranker(dtype=torch.float32).to("cuda"), stripes()
        pair = data.images[:1].to("cuda"), data.images[1:2].to("cuda")
        before = [torch.get_rng_state(), *(generator.get_state() for generator in gpu.generators)]
        regimes.train_autoencoder(ranker, data, TRAINING, regularisation="variational")
        regimes.train_mirroring(ranker, data, TRAINING)
        cascading_randomisation(ranker, *pair, maps)
        after = [torch.get_rng_state(), *(generator.get_state() for generator in gpu.generators)]
    assert all(map(torch.equal, before, after))
