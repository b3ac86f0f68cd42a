"""Everything public on a pretended GPU (see `pretended.py`): the same numbers as on the CPU to the bit, nothing mixed with
CPU tensors, results where they are documented to be, and how often a search makes the host wait."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from networks import images_and_maps, small_network
from pretended import GPU, PretendedGPU
from rankers import small_pairs, small_ranker, stripes
from torch import Tensor, nn

import apem_fast as af
from apem_fast import ops
from apem_fast.explain import EXPLAINERS
from apem_fast.margin_curve import RayView
from apem_fast.relevance import STAGES, irrelevance, shuffled
from apem_fast.siamese import TrainingOptions, regimes, validation
from apem_fast.siamese.attack import attack, mid_point_attack
from apem_fast.siamese.one_step import one_step_attack
from apem_fast.siamese.perception import interpolate_perceptions, perceive, perception_change
from apem_fast.siamese.quality import measure_quality
from apem_fast.siamese.recycling import recycle
from apem_fast.siamese.saliency import saliency_map, superimpose, superpixels, tessellate
from apem_fast.siamese.sanity import cascading_randomisation

Place = str | torch.device


# -- what is compared --------------------------------------------------------------------------------------------


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """The tensors, arrays and numbers of a result, by their path in it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    elif isinstance(value, nn.Module):
        items = list(value.state_dict().items())
    else:
        return {name: value}
    return {path: leaf for key, part in items for path, leaf in leaves(part, f"{name}.{key}").items()}


def assert_same(actual: Any, expected: Any, on_gpu: Callable[[str], bool], same: Callable) -> None:
    there, here = leaves(actual), leaves(expected)
    assert list(there) == list(here)
    for name, value in here.items():
        if name.endswith("probes"):  # depends on the batch size that is best there
            assert there[name].device.type == "cpu", name
        elif isinstance(value, Tensor):
            assert (there[name].device == GPU) == on_gpu(name), f"{name} is on {there[name].device}"
            assert torch.equal(there[name].cpu().isnan(), value.isnan()), name
            assert same(there[name].cpu().nan_to_num(), value.nan_to_num()), name
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(there[name], value, err_msg=name)
        elif isinstance(value, (int, float, str, bool)):
            assert there[name] == value or value != value, name


def check(case: Callable[[Place], Any], on_gpu: Callable[[str], bool], same: Callable = torch.equal) -> PretendedGPU:
    """Runs a case on the CPU and on the pretended GPU."""
    expected = case("cpu")
    with PretendedGPU() as gpu:
        actual = case("cuda")
        assert_same(actual, expected, on_gpu, same)
    return gpu


def nearly_equal(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, rtol=1e-3, atol=1e-5)


def nowhere(name: str) -> bool:
    return False


def everywhere(name: str) -> bool:
    return True


# -- the metric, the filter, the measures ------------------------------------------------------------------------

LIMITS = {"max_epsilon": 256.0, "step": 1.0}


@dataclasses.dataclass
class Classifier:
    """A network, images and maps on a device."""

    model: nn.Module
    images: Tensor
    relevance: Tensor
    colours: Tensor
    attribution: Tensor


def classifier(device: Place) -> Classifier:
    images, relevance = images_and_maps(3)
    colours = images_and_maps(3, map_channels=3, seed=1)[1]
    attribution = images_and_maps(3, seed=2)[0]
    tensors = (tensor.to(device) for tensor in (images, relevance, colours, attribution))
    return Classifier(small_network().to(device), *tensors)


def metric(**options: Any) -> Callable[[Place], Any]:
    def case(device: Place) -> Any:
        c = classifier(device)
        return af.apem(c.model, c.images, c.relevance, **{**LIMITS, **options})

    return case


def of_evaluator(device: Place) -> Any:
    c = classifier(device)
    evaluator = af.Evaluator(c.model, c.images, labels=c.model(c.images).argmax(1), batch_size=4, **LIMITS)
    results = evaluator.apem({"grey": c.relevance, "colours": c.colours, "inverse": irrelevance(c.relevance)})
    direction = ops.directed_relevance(c.colours, evaluator.sign_gradient)
    return (
        results,
        evaluator.minimum_epsilon(direction),
        [r.to_dataframe()["score"].to_numpy() for r in results.values()],
    )


def normalised(device: Place) -> Any:
    c = classifier(device)
    result = af.apem_norm(
        c.model, c.images, c.relevance, shuffles=3, generator=torch.Generator().manual_seed(3), **LIMITS
    )
    return result, result.score, result.to_dataframe()["score_norm"].to_numpy()


def filtered(**options: Any) -> Callable[[Place], Any]:
    def case(device: Place) -> Any:
        c = classifier(device)
        # A map of some fifty levels, so that the search is short.
        coarse = (c.relevance * 50).round() / 50
        result = af.filter_relevance(c.model, c.images, coarse, **{**LIMITS, **options})
        return result, result.to_dataframe()["score_after"].to_numpy()

    return case


def curves(device: Place) -> Any:
    c = classifier(device)
    view = RayView(c.model, c.images, c.relevance, batch_size=8)
    one = RayView(c.model, c.images, c.colours, image_of_map=torch.tensor([2, 0, 0]), batch_size=8)
    grid = torch.arange(0, 100, 20.0)
    return view.margins(grid), one.margins(grid.to(device), grid * 2)


def perturbed_views(device: Place) -> Any:
    c = classifier(device)
    epsilon = torch.tensor([3.0, 50.0, 90.0])
    view = RayView(c.model, c.images, c.relevance)
    return view.perturbed(epsilon), view.perturbed(epsilon.to(device), irrelevance=True)


def measured(device: Place) -> Any:
    c = classifier(device)
    labels = c.model(c.images).argmax(1)
    explainer = af.explain.Gradient()
    return (
        af.selectivity(c.model, c.images, c.relevance, steps=7, batch_size=8),
        af.selectivity(
            c.model, c.images, c.colours, labels=labels, steps=7, batch_size=8, output="logit", baseline=c.images.mean()
        ),
        af.continuity(c.model, c.images, explainer, neighbours=2),
        af.continuity(c.model, c.images, explainer, labels=labels, neighbours=c.images[:, None] + 0.1),
        af.parameter_randomisation(c.model, c.images, explainer, apem=LIMITS),
        af.parameter_randomisation(c.model, c.images, af.explain.Random(), labels=labels, mode="independent"),
        af.data_randomisation(c.model, small_network(seed=4).to(device), c.images, explainer, apem=LIMITS),
        af.data_randomisation(c.model, lambda network: network, c.images, lambda m, x, y: torch.rand_like(x)),
    )


ON_THE_CPU: dict[str, Callable[[Place], Any]] = {
    "apem": metric(),
    "apem, exhaustive": metric(search="exhaustive", max_epsilon=64.0),
    "apem, bounded": metric(bounds=(-2.0, 2.0), batch_size=2),
    "apem, batches of four": metric(batch_size=4),
    "apem, screened in bfloat16": metric(precision="bfloat16"),
    "Evaluator": of_evaluator,
    "apem_norm": normalised,
    "margin curves": curves,
    "measures": measured,
}


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_results_on_the_cpu(name: str) -> None:
    check(ON_THE_CPU[name], nowhere)


@pytest.mark.parametrize("options", [{}, {"levels": 8}, {"search": "exhaustive", "levels": 3, "max_epsilon": 32.0}, {"batch_size": 64}], ids=str)  # fmt: skip
def test_the_filter(options: dict[str, Any]) -> None:
    check(filtered(**options), lambda name: name == ".0.relevance")


def test_perturbed_images_stay_on_the_device() -> None:
    check(perturbed_views, everywhere)


# -- explanations ------------------------------------------------------------------------------------------------

FEW = {"smooth-grad": {"samples": 3}, "lrp": {"rule": "alpha-beta"}}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_explanations(name: str) -> None:
    def case(device: Place) -> Any:
        c = classifier(device)
        explainer = EXPLAINERS[name](**FEW.get(name, {}))
        attribution = explainer(c.model, c.images)
        labels = torch.tensor([1, 0, 3], device=device)
        return attribution, explainer(c.model, c.images, labels), STAGES["times-image"](attribution, c.images.abs())

    # SmoothGrad runs in channels-last on a CPU only, which rounds otherwise.
    check(case, everywhere, nearly_equal if name == "smooth-grad" else torch.equal)


def test_explanations_from_elsewhere() -> None:
    from captum.attr import IntegratedGradients

    methods = (
        af.explain.from_captum(IntegratedGradients, n_steps=4),
        af.explain.from_callable(lambda model, x, y: torch.randn(x.shape, device=x.device)),
        af.explain.from_callable(lambda model, x, y: x.mean(1).cpu()),
        af.explain.GradCAM(layer="4"),
        af.explain.LRP(relative=True),
        af.explain.LRP(rule="naive", bias=False),
    )

    def case(device: Place) -> Any:
        c = classifier(device)
        return [method(c.model, c.images) for method in methods] + [af.explain.LRP().explain(c.model, c.images)]

    check(case, everywhere)


def test_relevance_maps() -> None:
    def case(device: Place) -> Any:
        c = classifier(device)
        maps = [stage(c.attribution, c.images.abs()) for stage in STAGES.values()]
        return maps, irrelevance(maps[0]), shuffled(maps[1], 5, 1), shuffled(maps[0][:0])

    check(case, everywhere)


# -- rankers -----------------------------------------------------------------------------------------------------


def attacks(device: Place) -> Any:
    ranker, (first, second) = small_ranker().to(device), (t.to(device) for t in small_pairs(4))
    region = torch.zeros(first.shape[2:], dtype=torch.bool)  # as a user makes it: on the CPU
    region[2:9] = True
    options = {"steps": 12, "step_size": 2.0}
    return (
        attack(ranker, first, second, 0.0, **options, perceptions_at=(0, 3, 12)),
        attack(ranker, first, second, torch.tensor([0.0, 1.0, 0.5, 0.2]), **options, region=region, damping=0.5),
        attack(ranker, first, second, 1.0, **options, space="embedding", stop_when_reached=True, perceptions_at=(5,)),
        mid_point_attack(
            ranker, first, second, **options, tv_force=1e-4, zero_force=1e-5, diff_force=0.1, batch_size=3
        ),
        mid_point_attack(ranker, first, second, **options, region=region.expand(4, 1, -1, -1), bounds=(0.0, 1.0)),
        one_step_attack(ranker, first, second, 0.5, region=region),
        one_step_attack(ranker, first, second, 0.5, distance=torch.ones(4)),
    )


def views_of_attacks(device: Place) -> Any:
    ranker, (first, second) = small_ranker(channels=3).to(device), (t.to(device) for t in small_pairs(4, channels=3))
    perturbed = attack(ranker, first, second, 0.0, steps=5, step_size=2.0).perturbed
    saliency = saliency_map(first, perturbed)
    return (
        perceive(ranker, first), perception_change(ranker, first, perturbed),
        interpolate_perceptions(ranker, first, second, 3), recycle(ranker, first, second, perturbed),
        saliency, superimpose(first, saliency), validation.mid_point_sensitivity(ranker, perturbed, second),
        validation.angle(perturbed - first, second - first),
    )  # fmt: skip


def figures_of_attacks(device: Place) -> Any:
    ranker, (first, second) = small_ranker(channels=3).to(device), (t.to(device) for t in small_pairs(4, channels=3))
    perturbed = attack(ranker, first, second, 0.0, steps=5, step_size=2.0).perturbed
    saliency, labels = saliency_map(first, perturbed), superpixels(first, 6)

    def maps(ranker, first, second):
        return {"attack": saliency_map(first, attack(ranker, first, second, 0.0, steps=3, step_size=2.0).perturbed)}

    return (
        tessellate(first, saliency, 6), labels, validation.masking_importance(ranker, first, second, labels),
        validation.masking_agreement(ranker, first, second, saliency, labels),
        validation.masking_agreement(ranker, first, second, saliency, labels.to(device)),
        cascading_randomisation(ranker, first, second, maps).correlation,
    )  # fmt: skip


def comparisons(device: Place) -> Any:
    ranker, (first, second) = small_ranker().to(device), (t.to(device) for t in small_pairs(4))
    options = {"steps": 5, "step_size": 2.0}
    return (
        validation.compare_one_and_many_steps(ranker, first, second, 0.0, **options),
        validation.compare_mid_point_and_boundary(ranker, first, second, **options),
    )


def test_attacks_stay_on_the_device() -> None:
    check(attacks, everywhere)


def test_views_of_attacks_stay_on_the_device() -> None:
    check(views_of_attacks, everywhere)


def test_figures_of_attacks() -> None:
    check(figures_of_attacks, nowhere)


def test_comparisons_of_attacks() -> None:
    check(comparisons, lambda name: name.split(".")[2] in ("first", "second"))


TRAINING = TrainingOptions(steps=3, images=8, pairs=12, shift=1, progress=False)


@pytest.mark.parametrize(
    "regime",
    [
        regimes.train_simultaneous, regimes.train_autoencoder_first, regimes.train_ranking, regimes.train_mirroring,
        regimes.train_contrastive, regimes.train_triplet,
        lambda *arguments: regimes.train_autoencoder(*arguments, regularisation="variational"),
    ],
)  # fmt: skip
def test_training(regime: Callable, tmp_path) -> None:
    """A ranker on the device learns from images wherever they are; a checkpoint of one device goes on on another."""

    def case(device: Place, data_on: Place | None = None, options: TrainingOptions = TRAINING) -> Any:
        ranker = small_ranker(dtype=torch.float32).to(device)
        result = regime(ranker, stripes().to(data_on or device), options)
        quality = measure_quality(ranker, stripes().to(data_on or device), pairs=200)
        return ranker, getattr(result, "losses", None), quality

    check(case, lambda name: name.startswith(".0."))
    check(lambda device: case(device, "cpu"), lambda name: name.startswith(".0."))
