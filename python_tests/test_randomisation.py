"""The randomisation tests: what is re-initialised when, and how explanations that depend on it come off."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.stats
import skimage.metrics
import torch
from networks import images_and_maps, small_network
from test_metric import NoisyThenBroken, assert_same, snapshot
from torch import nn

import apem_fast as af
from apem_fast.randomised import parts_of, randomised_stages
from apem_fast.similarity import structural_similarity

STAGES = ("Linear 9", "Conv2d 4", "BatchNorm2d 1", "Conv2d 0")


def changed(network: nn.Module, original: nn.Module) -> set[str]:
    """The layers whose parameters are no longer those of the original."""
    before = dict(original.named_parameters())
    return {name.split(".")[0] for name, value in network.named_parameters() if not torch.equal(value, before[name])}


def taught(seed: int = 0) -> nn.Module:
    """A network whose batch norm, too, has something to forget."""
    network = small_network(seed)
    with torch.no_grad():
        network[1].weight.mul_(1.5), network[1].running_mean.add_(0.3), network[1].running_var.mul_(2.0)
    return network


# -- re-initialising ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("independent", [False, True])
def test_layers_go_from_the_output_to_the_input(independent):
    original = taught()
    network, seen, random = copy.deepcopy(original), [], torch.get_rng_state()
    stages = tuple(
        (seen.append(changed(network, original)), name)[1]
        for name in randomised_stages(network, independent=independent)
    )
    assert stages == STAGES
    one_by_one = [{"9"}, {"4"}, {"1"}, {"0"}]
    cascade = [{"9"}, {"9", "4"}, {"9", "4", "1"}, {"9", "4", "1", "0"}]
    assert seen == (one_by_one if independent else cascade)
    assert torch.equal(random, torch.get_rng_state())
    if independent:  # all is as it was in the end
        for name, value in network.state_dict().items():
            assert torch.equal(value, original.state_dict()[name])
    else:
        assert not torch.equal(network[1].running_mean, original[1].running_mean)


def test_a_layer_gets_the_same_values_in_either_mode_and_others_from_another_seed():
    def first_layer(**options):
        network = taught()
        for name in randomised_stages(network, **options):
            if name == "Conv2d 0":
                return network[0].weight.clone()

    assert torch.equal(first_layer(), first_layer(independent=True))
    assert not torch.equal(first_layer(), first_layer(seed=1))


class Unusual(nn.Module):
    """Parameters of its own and no way to draw them anew; attention, which hides its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.arange(12.0))
        self.attention = nn.MultiheadAttention(4, 2)


def test_parameters_without_a_way_to_draw_them_keep_their_values_in_another_order():
    network = Unusual()
    original = copy.deepcopy(network)
    assert [part.title for part in parts_of(network)] == [
        "NonDynamicallyQuantizableLinear attention.out_proj",
        "MultiheadAttention attention",
        "Unusual",
    ]
    list(randomised_stages(network))
    assert not torch.equal(network.scale, original.scale)
    assert torch.equal(network.scale.sort().values, original.scale)
    assert not torch.equal(network.attention.in_proj_weight, original.attention.in_proj_weight)


def test_named_stages_take_all_that_is_in_them_in_the_order_given():
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 2))
    parts = parts_of(network, ["0", "1"])
    assert [(part.title, len(part.layers)) for part in parts] == [("0", 2), ("1", 1)]
    for names, sentence in (
        (["2"], r"randomisation: stages must name submodules with parameters \(got '2'\)"),
        ([], r"randomisation: stages must name at least one submodule \(got none\)"),
    ):
        with pytest.raises(ValueError, match=f"^{sentence}$"):
            parts_of(network, names)
    with pytest.raises(ValueError, match=r"^randomisation: the network must have parameters \(got none\)$"):
        parts_of(nn.ReLU())


# -- the tests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_similarities_are_those_of_the_libraries(mode):
    model, (images, _) = taught(), images_and_maps(2)
    gradient, heard = af.explain.Gradient(), []
    result = af.parameter_randomisation(
        model, images, gradient, mode=mode, seed=3, progress=lambda *now: heard.append(now)
    )
    assert result.stages == STAGES and heard == [(1, 4), (2, 4), (3, 4), (4, 4)]
    labels = model(images).argmax(dim=1)
    assert torch.equal(result.labels, labels)
    original = gradient(model, images, labels)
    network = copy.deepcopy(model)
    for s, _ in enumerate(randomised_stages(network, independent=mode == "independent", seed=3)):
        other = gradient(network, images, labels)
        for n in range(2):
            a, b = original[n].flatten().numpy(), other[n].flatten().numpy()
            assert float(result.rank_correlation[s, n]) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
            expected = scipy.stats.spearmanr(np.abs(a), np.abs(b)).statistic
            assert float(result.absolute_rank_correlation[s, n]) == pytest.approx(expected)
            first, second = (af.relevance_map(x[n : n + 1])[0, 0].double().numpy() for x in (original, other))
            expected = skimage.metrics.structural_similarity(first, second, data_range=1.0)
            assert float(result.structural_similarity[s, n]) == pytest.approx(expected)


def test_what_does_not_depend_on_the_network_is_caught():
    model, (images, _) = taught(), images_and_maps(4)
    edge = af.parameter_randomisation(model, images, af.explain.Edge())
    for values in (edge.rank_correlation, edge.absolute_rank_correlation, edge.structural_similarity):
        torch.testing.assert_close(values, torch.ones(4, 4, dtype=torch.float64))
    gradient = af.parameter_randomisation(model, images, af.explain.Gradient())
    assert gradient.rank_correlation[-1].mean().abs() < 0.3
    uniform = af.parameter_randomisation(model, images, af.explain.Uniform())
    assert uniform.rank_correlation.isnan().all()  # a constant has no ranks


def test_apem_of_every_stage_is_measured_on_the_original_network():
    model, (images, _) = taught(), images_and_maps(3)
    gradient, grid = af.explain.Gradient(), {"step": 0.25, "max_epsilon": 40.0}
    result = af.parameter_randomisation(model, images, gradient, stages=["9", "0"], apem=grid)
    assert result.stages == ("9", "0")
    network = copy.deepcopy(model)
    for s, _ in enumerate(randomised_stages(network, names=["9", "0"])):
        maps = af.relevance_map(gradient(network, images, result.labels))
        assert torch.equal(result.score[s], af.apem(model, images, maps, **grid).score)
    plain = af.apem(model, images, af.relevance_map(gradient(model, images)), **grid)
    assert torch.equal(result.original_score, plain.score)
    table = result.to_dataframe()
    assert len(table) == 6 and list(table["stage"]) == ["9"] * 3 + ["0"] * 3 and list(table["image"]) == [0, 1, 2] * 2
    assert list(table["score"]) == result.score.flatten().tolist()
    assert "score" not in af.parameter_randomisation(model, images, gradient, stages=["9"]).to_dataframe()


def test_a_map_without_a_ray_has_no_score():
    model, (images, _) = taught(), images_and_maps(2)
    result = af.parameter_randomisation(
        model, images, lambda model, images, labels: torch.zeros_like(images), stages=["9"], apem={"max_epsilon": 20.0}
    )
    assert result.score.isnan().all() and result.original_score.isnan().all()


def test_data_randomisation_takes_a_network_or_a_way_to_train_one():
    model, (images, _) = taught(), images_and_maps(3)
    gradient = af.explain.Gradient()
    same = af.data_randomisation(model, copy.deepcopy(model), images, gradient)
    assert same.stages == ("labels",)
    torch.testing.assert_close(same.rank_correlation, torch.ones(1, 3, dtype=torch.float64))
    other = af.data_randomisation(model, taught(seed=5), images, gradient)
    assert other.rank_correlation.abs().max() < 0.5
    handed = []

    def train(network):
        handed.append((network.training, changed(network, model), torch.is_grad_enabled()))
        torch.rand(1)
        return taught(seed=5)

    random = torch.get_rng_state()
    trained = af.data_randomisation(model, train, images, gradient)
    assert torch.equal(random, torch.get_rng_state())
    assert handed == [(True, {"0", "1", "4", "9"}, True)]
    assert torch.equal(trained.rank_correlation, other.rank_correlation)


def test_structural_similarity_of_small_maps():
    a, b = torch.rand(2, 2, 5, 4, generator=torch.Generator().manual_seed(0)).split(1)
    expected = skimage.metrics.structural_similarity(
        a[0].double().numpy(), b[0].double().numpy(), win_size=3, data_range=1.0, channel_axis=0
    )
    assert float(structural_similarity(a, b)[0]) == pytest.approx(expected)
    assert structural_similarity(a[..., :2], b[..., :2]).isnan().all()


# -- what is the user's, and bad input ---------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [10_000, 2])
def test_leaves_everything_as_it_was_also_after_an_exception(calls):
    images, _ = images_and_maps(2)
    model = NoisyThenBroken(taught(), calls).eval()
    before = snapshot(model, images)
    if calls == 10_000:
        af.parameter_randomisation(model, images, af.explain.Gradient())
    else:
        with pytest.raises(KeyError, match="out of calls"):
            af.parameter_randomisation(model, images, af.explain.Gradient())
    assert_same(before, snapshot(model, images))


PARAMETER, DATA = "parameter_randomisation", "data_randomisation"
BAD = {
    "mode": (
        PARAMETER,
        dict(mode="all"),
        ValueError,
        r"parameter_randomisation: mode must be \"cascading\" or \"independent\" \(got 'all'\)",
    ),
    "stages": (
        PARAMETER,
        dict(stages="fc"),
        TypeError,
        r"parameter_randomisation: stages must be a list of names \(got str\)",
    ),
    "a stage": (
        PARAMETER,
        dict(stages=["fc"]),
        ValueError,
        r"randomisation: stages must name submodules with parameters \(got 'fc'\)",
    ),
    "training": (
        PARAMETER,
        dict(model=small_network().train()),
        ValueError,
        r"parameter_randomisation: model must be in eval mode, .*",
    ),
    "method": (
        PARAMETER,
        dict(explain=None),
        TypeError,
        r"parameter_randomisation: explain must be an explanation method or a function \(got NoneType\)",
    ),
    "relevance": (
        PARAMETER,
        dict(relevance=None),
        TypeError,
        r"parameter_randomisation: relevance must be a function \(got NoneType\)",
    ),
    "an option": (
        PARAMETER,
        dict(apem={"step": 0}),
        ValueError,
        r"parameter_randomisation: step must be positive and finite \(got 0\)",
    ),
    "no network": (
        DATA,
        dict(randomised=3),
        TypeError,
        r"data_randomisation: randomised must be a network or a function that trains one \(got int\)",
    ),
    "nothing trained": (
        DATA,
        dict(randomised=lambda network: None),
        TypeError,
        r"data_randomisation: randomised must return the trained network \(got NoneType\)",
    ),
    "other in training": (
        DATA,
        dict(randomised=small_network().train()),
        ValueError,
        r"data_randomisation: randomised must be in eval mode, .*",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case):
    measure, changes, error, sentence = BAD[case]
    arguments = {"model": small_network(), "images": images_and_maps(2)[0], "explain": af.explain.Gradient()}
    if measure == DATA:
        arguments["randomised"] = small_network(1)
    with pytest.raises(error, match=f"^{sentence}$"):
        getattr(af, measure)(**arguments | changes)
