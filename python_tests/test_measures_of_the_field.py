"""The measures of the field against their sources' words, one image and one replacement at a time; the reliability of
measures against numbers from the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from networks import images_and_maps, literal_epsilons, small_network
from scipy import ndimage, stats
from test_measures import tiny_images, tiny_network
from test_metric import assert_same, snapshot

import apem_fast as af
from apem_fast.measures import (
    adversarial_curves,
    agreement_of_ranks,
    deletion,
    flip_fraction,
    insertion,
    krippendorff_alpha,
    ranks_on_images,
    region_perturbation,
    relevance_gain,
    robustness_s,
)
from apem_fast.measures.adversarial_curves import flipped_images
from apem_fast.measures.imputation import filling_of
from apem_fast.measures.reliability import interval_of, resampled_alphas
from apem_fast.search import Isolate
from apem_fast.seeding import generator_for


def probability(model, x, label) -> float:
    with torch.no_grad():
        return float(model(x[None])[0].double().softmax(0)[label])


def in_order(relevance) -> list[tuple[int, int, int]]:
    """The features of one map (1 or C, H, W), the most relevant first, of equals the earlier one first."""
    places = np.ndindex(*relevance.shape)
    return sorted(places, key=lambda place: -float(relevance[place]))


def replaced(image, filling, features, per_pixel: bool):
    x = image.clone()
    for c, i, j in features:
        channels = slice(None) if per_pixel else c
        x[channels, i, j] = filling[channels, i, j]
    return x


# -- imputation --------------------------------------------------------------------------------------------------


def test_imputations():
    images = torch.randn(2, 3, 40, 60, generator=torch.Generator().manual_seed(0))
    assert filling_of("constant", images).unique().tolist() == [0]
    for n in range(2):
        for c in range(3):
            assert filling_of("mean", images)[n, c].unique().item() == pytest.approx(
                images[n, c].mean().item(), abs=1e-6
            )
            blurred = ndimage.gaussian_filter(images[n, c].numpy(), 2.0, mode="nearest", truncate=3.0)
            np.testing.assert_allclose(filling_of("blur", images)[n, c].numpy(), blurred, atol=1e-5)
    assert filling_of(0.5, images).shape == images.shape
    colour = torch.tensor([0.0, 1.0, 2.0])[:, None, None]
    assert torch.equal(filling_of(colour, images)[1, :, 3, 4], colour.flatten())
    with pytest.raises(ValueError, match="imputation must be constant, blur, mean, a number or a"):
        filling_of("grey", images)
    with pytest.raises(ValueError, match="imputation must broadcast"):
        filling_of(torch.zeros(2, 2), images)


# -- deletion, insertion, their difference -------------------------------------------------------------------------


@pytest.mark.parametrize("map_channels", [1, 3])
@pytest.mark.parametrize("imputation", ["constant", "blur", "mean"])
def test_deletion_and_insertion_one_feature_at_a_time(map_channels, imputation):
    model, (images, relevance) = tiny_network(), tiny_images(2, map_channels)
    gain = relevance_gain(model, images, relevance, imputation=imputation, steps=None)
    features = 25 * map_channels
    for n in range(2):
        filling, order = filling_of(imputation, images)[n], in_order(relevance[n])
        label = int(gain.deletion.labels[n])
        per_pixel = map_channels == 1
        deleted = [
            probability(model, replaced(images[n], filling, order[:k], per_pixel), label) for k in range(features + 1)
        ]
        # Petsiuk et al.: start from the filling and put the image's features back, the most relevant first.
        inserted = [
            probability(model, replaced(filling, images[n], order[:k], per_pixel), label) for k in range(features + 1)
        ]
        np.testing.assert_allclose(gain.deletion.output[n], deleted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gain.insertion.output[n].flip(0), inserted, rtol=1e-5, atol=1e-6)
        share = np.linspace(0, 1, features + 1)
        areas = np.trapezoid(deleted, share), np.trapezoid(inserted, share)
        assert float(gain.gain[n]) == pytest.approx(areas[1] - areas[0], abs=1e-6)
    assert gain.probes == 2 * (features + 1)
    table = gain.to_dataframe()
    assert (table["relevance_gain"] == table["insertion"] - table["deletion"]).all()


def test_deletion_by_a_constant_is_selectivity():
    model, (images, relevance) = tiny_network(), tiny_images(3)
    assert torch.equal(
        deletion(model, images, relevance, imputation="constant", steps=7).output,
        af.selectivity(model, images, relevance, steps=7).output,
    )
    one_alone = insertion(model, images[1:2], relevance[1:2], steps=7).area
    assert insertion(model, images, relevance, steps=7).area[1].item() == pytest.approx(one_alone.item(), abs=1e-6)


# -- region perturbation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("map_channels", [1, 3])
def test_region_perturbation_block_by_block(map_channels):
    model, (images, relevance) = small_network(), images_and_maps(2, map_channels=map_channels)
    result = region_perturbation(model, images, relevance, size=3, steps=6, repeats=2, low=-1.0, high=2.0, seed=5)
    for n in range(2):
        label, sums = int(result.labels[n]), {}
        for i in range(5):  # 16 pixels hold five blocks of three, and one pixel is left over
            for j in range(5):
                sums[i, j] = float(relevance[n, :, 3 * i : 3 * i + 3, 3 * j : 3 * j + 3].double().sum())
        order = sorted(sums, key=lambda block: -sums[block])
        falls = []
        for repeat in range(2):
            noise = torch.rand(3, 16, 16, generator=generator_for(images[n], 5, repeat), dtype=torch.float64).float()
            x = images[n].clone()
            before = probability(model, x, label)
            falls.append(0.0)
            for i, j in order[:6]:
                block = slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3)
                x[:, *block] = -1 + 3 * noise[:, *block]
                falls.append(before - probability(model, x, label))
        assert float(result.area_over_curve[n]) == pytest.approx(np.mean(falls), abs=1e-5)
    assert result.probes == 2 * 7


def test_noise_of_a_block_is_the_images_own_and_within_its_range():
    model, (images, relevance) = small_network(), images_and_maps(3)
    whole = region_perturbation(model, images, relevance, size=4, repeats=2)
    alone = region_perturbation(model, images[2:], relevance[2:], size=4, repeats=2)
    torch.testing.assert_close(whole.output[2:], alone.output, rtol=1e-5, atol=1e-6)
    assert whole.output.shape == (3, 2, 17)  # no more blocks than there are
    with pytest.raises(ValueError, match="region_perturbation: size must be at most the images' side 16"):
        region_perturbation(model, images, relevance, size=17)


# -- flip fraction -------------------------------------------------------------------------------------------------


def first_change(model, image, relevance, filling, label, parts) -> float:
    order = in_order(relevance)
    for k in range(1, parts + 1):
        x = replaced(image, filling, order[: k * len(order) // parts], len(relevance) == 1)
        with torch.no_grad():
            if int(model(x[None]).argmax()) != label:
                return k / parts
    return math.inf


@pytest.mark.parametrize("imputation", ["constant", "blur", "mean"])
@pytest.mark.parametrize("map_channels", [1, 3])
def test_the_flip_fraction_is_the_first_share_that_changes_the_prediction(imputation, map_channels):
    model = small_network()
    images, relevance = images_and_maps(12, map_channels=map_channels)
    found = flip_fraction(model, images, relevance, imputation=imputation, parts=64)
    filling = filling_of(imputation, images)
    expected = [first_change(model, images[n], relevance[n], filling[n], int(found.labels[n]), 64) for n in range(12)]
    assert found.flipped.tolist() == [value < math.inf for value in expected]
    assert found.fraction.tolist() == [min(value, 1.0) for value in expected]
    # A policy of one's own is taken as it is: it finds no change too early, and may find a later one.
    skipping = flip_fraction(model, images, relevance, imputation=imputation, parts=64, search=Isolate(flat=4))
    assert (skipping.fraction >= found.fraction).all()
    assert skipping.probes.tolist() != found.probes.tolist()


def test_the_flip_fraction_depends_on_no_batch_and_leaves_everything_alone():
    model, (images, relevance) = small_network(), images_and_maps(5)
    before = snapshot(model, images)
    whole = flip_fraction(model, images, relevance, parts=50, imputation="constant")
    assert_same(before, snapshot(model, images))
    for size in (1, 3):
        again = flip_fraction(model, images[3:], relevance[3:], parts=50, imputation="constant", batch_size=size)
        assert again.fraction.tolist() == whole.fraction[3:].tolist()
    nothing = flip_fraction(model, images, relevance, parts=50, imputation=images)  # replaced by itself
    assert not nothing.flipped.any() and nothing.fraction.tolist() == [1.0] * 5
    with pytest.raises(ValueError, match="flip_fraction: parts must be at least 1"):
        flip_fraction(model, images, relevance, parts=0)


# -- Robustness-S --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("map_channels", [1, 3])
def test_robustness_of_a_set_and_of_its_complement(map_channels):
    model, (images, relevance) = small_network(), images_and_maps(2, map_channels=map_channels)
    shares = (0.25, 0.5, 0.9)
    result = robustness_s(model, images, relevance, shares=shares, max_epsilon=120, search="exhaustive")
    for n in range(2):
        order = in_order(relevance[n])
        curves = ([], [])
        for share in shares:
            inside = torch.zeros_like(relevance[n])
            for place in order[: int(share * len(order))]:
                inside[place] = 1
            for curve, within, (epsilon, _) in zip(
                curves, (inside, 1 - inside), literal_epsilons(model, images[n], inside, 1.0, 120.0)
            ):
                size = float(within.expand(3, 16, 16).sum())
                curve.append(epsilon / size * math.sqrt(size))  # no gradient of this network is exactly 0
        np.testing.assert_allclose(result.relevant[n], curves[0], rtol=1e-6)
        np.testing.assert_allclose(result.complement[n], curves[1], rtol=1e-6)
        assert float(result.area_relevant[n]) == pytest.approx(np.trapezoid(curves[0], shares) / 0.65)
        assert float(result.area_complement[n]) == pytest.approx(np.trapezoid(curves[1], shares) / 0.65)
    with pytest.raises(ValueError, match="robustness_s: shares must ascend within"):
        robustness_s(model, images, relevance, shares=(0.5, 0.5))


# -- adversarial MoRF and LeRF -------------------------------------------------------------------------------------


def test_adversarial_curves_replace_by_the_flipped_image():
    model, (images, relevance) = small_network(), images_and_maps(3)
    result = adversarial_curves(model, images, relevance, steps=None, search="exhaustive")
    evaluator = af.Evaluator(model, images)
    other = flipped_images(evaluator)
    ones = torch.ones(1, 16, 16)
    for n in range(3):
        (epsilon, flipped), _ = literal_epsilons(model, images[n], ones, 1.0, 4096.0)
        assert flipped and bool(result.flipped[n])
        adversarial = images[n] + epsilon * evaluator.sign_gradient[n].float() / (3 * 256)
        torch.testing.assert_close(other.images[n], adversarial, rtol=1e-5, atol=1e-6)
        order, label = in_order(relevance[n]), int(evaluator.labels[n])
        for found, first in ((result.morf, order), (result.lerf, order[::-1])):
            curve = [probability(model, replaced(images[n], adversarial, first[:k], True), label) for k in range(257)]
            assert float(found[n]) == pytest.approx(np.trapezoid(curve, np.linspace(0, 1, 257)), abs=1e-5)
    limited = adversarial_curves(model, images, relevance, steps=4, max_epsilon=1.0, step=1.0)
    assert limited.morf.isnan().tolist() == (~limited.flipped).tolist()


# -- the reliability of measures -----------------------------------------------------------------------------------

NONE = math.nan
# Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C to E: four observers, twelve units.
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]


@pytest.mark.parametrize("level, alpha", [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_of_krippendorffs_own_example(level, alpha):
    assert krippendorff_alpha(OBSERVERS, level) == pytest.approx(alpha, abs=5e-4)


def test_alpha_of_agreement_chance_and_nothing():
    same = np.tile([3.0, 1.0, 2.0], (6, 1))
    assert krippendorff_alpha(same) == 1
    reversed_half = np.concatenate([same, 4 - same])
    assert krippendorff_alpha(reversed_half) < 0
    chance = np.random.default_rng(0).permuted(np.tile(np.arange(5.0), (2000, 1)), axis=1)
    assert abs(krippendorff_alpha(chance)) < 0.01
    low, high = interval_of(resampled_alphas(chance[:50] + 1))
    assert low < 0 < high < 0.2
    assert interval_of(resampled_alphas(same)) == (1, 1)
    assert math.isnan(krippendorff_alpha([[1, 2, 3]])) and math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    with pytest.raises(ValueError, match=r"ratings must have shape \(raters, units\)"):
        krippendorff_alpha([1, 2])


def test_ranks_and_agreement():
    scores = np.array([[3.0, 1.0, 1.0], [0.0, NONE, 5.0]])
    np.testing.assert_equal(ranks_on_images(scores), [[1, 2.5, 2.5], [2, NONE, 1]])
    np.testing.assert_equal(ranks_on_images(scores, higher_is_better=False)[0], [3, 1.5, 1.5])
    generator = np.random.default_rng(1)
    one, other = (ranks_on_images(generator.integers(0, 4, (30, 6))) for _ in range(2))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(one, other) if len(set(a)) > 1 and len(set(b)) > 1]
    assert agreement_of_ranks(one, other) == pytest.approx(np.mean(expected))
    assert agreement_of_ranks(one, one) == pytest.approx(1)
