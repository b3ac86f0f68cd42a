"""The audit: what a scan of some rays says of the search that measured all of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.stats
import torch
from networks import images_and_maps, small_network

import apem_fast as af
from apem_fast.metric.auditing import Audit, Difference, drawn, most_wrong

GRID = {"step": 0.5, "max_epsilon": 20.0}


def test_the_bound_is_clopper_and_pearsons():
    """Without a miss in closed form: the share p at which n hits in a row have probability .05 is 1 - .05^(1 / n)."""
    for rays in (10, 300, 3000):
        assert most_wrong(rays, 0) == pytest.approx(1 - 0.05 ** (1 / rays), rel=1e-9)
    # With one: (1 - p)^n + n p (1 - p)^(n - 1) = .05.
    p = most_wrong(50, 1)
    assert (1 - p) ** 50 + 50 * p * (1 - p) ** 49 == pytest.approx(0.05, rel=1e-9)
    assert most_wrong(5, 5) == 1
    for rays, differ in ((84, 0), (300, 4), (5376, 2)):  # SciPy's exact interval, of which 5 % lie beyond the upper end
        both = scipy.stats.binomtest(differ, rays).proportion_ci(0.9, "exact")
        assert most_wrong(rays, differ) == pytest.approx(both.high, rel=1e-6)


def test_a_search_by_scan_is_exact_and_a_wrong_epsilon_is_found():
    images, relevance = images_and_maps(5)
    evaluator = af.Evaluator(small_network(), images, **GRID)
    maps = {"one": relevance, "other": 1 - 0.9 * relevance}
    result = evaluator.apem(maps)
    assert af.audit(evaluator, maps, result, rays=20).differences == ()
    wrong = result["other"].epsilon_plus.clone()
    wrong[3] += 0.5
    flipped = result["other"].flipped_plus.clone()
    flipped[3] = True
    changed = result | {"other": dataclasses.replace(result["other"], epsilon_plus=wrong, flipped_plus=flipped)}
    audit = af.audit(evaluator, maps, changed, rays=20)
    right = float(result["other"].epsilon_plus[3]) if result["other"].flipped_plus[3] else None
    assert audit.differences == (Difference("other", 3, True, float(wrong[3]), right),)
    assert str(audit) == "19 of 20 rays exact: all were audited." and audit.most_wrong == 1 / 20


def test_what_is_said():
    assert str(Audit(300, 900, (), 0)) == (
        "300 of 300 audited rays exact: with 95 % confidence at least 99.0 % of these epsilons are."
    )


def test_the_draw_is_even_and_the_same_each_time():
    strata = {"a": 40, "b": 40, "c": 20}
    chosen = drawn(strata, 50, 7)
    assert {name: len(rays) for name, rays in chosen.items()} == {"a": 20, "b": 20, "c": 10}
    for name, rays in chosen.items():
        assert len(set(rays.tolist())) == len(rays) and rays.max() < strata[name]
        np.testing.assert_array_equal(rays, drawn(strata, 50, 7)[name])
    assert sum(len(rays) for rays in drawn(strata, 7, 0).values()) == 7
    assert all(len(drawn(strata, 100, 0)[name]) == size for name, size in strata.items())


@pytest.mark.parametrize(
    "rays, sentence", [(21, r"rays must be at most the 20 that there are \(got 21\)"), (0, r"at least 1 \(got 0\)")]
)
def test_more_rays_than_there_are(rays, sentence):
    images, relevance = images_and_maps(10)
    with pytest.raises(ValueError, match=sentence):
        af.audit(af.Evaluator(small_network(), images, **GRID), relevance, rays=rays)


def test_results_of_other_maps_are_refused():
    images, relevance = images_and_maps(2)
    evaluator = af.Evaluator(small_network(), images, **GRID)
    with pytest.raises(ValueError, match="results must be of the same maps"):
        af.audit(evaluator, {"a": relevance}, {"b": evaluator.apem({"b": relevance})["b"]}, rays=2)
    other = af.Evaluator(small_network(), images, step=1.0, max_epsilon=20.0).apem({"a": relevance})
    with pytest.raises(ValueError, match="the evaluator's 2 images, step and max_epsilon"):
        af.audit(evaluator, {"a": relevance}, other, rays=2)


def test_a_linear_network_flips_where_arithmetic_says():
    """One weight for each class: the margin falls on a straight line, and the flip is known without a search."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2)).double().eval()
    images, relevance = torch.rand(6, 3, 4, 4).double(), torch.rand(6, 1, 4, 4).double()
    result = af.apem(network, images, relevance, step=1 / 64, max_epsilon=64.0)
    weight = network[1].weight.detach()
    for n in range(6):
        logits = network(images[n : n + 1])[0].detach()
        label = int(logits.argmax())
        margin, apart = float(logits[label] - logits[1 - label]), (weight[label] - weight[1 - label]).view(3, 4, 4)
        for values, epsilon in ((relevance[n], result.epsilon_minus), (1 - relevance[n], result.epsilon_plus)):
            fall = float((values * apart.abs()).sum() / (3 * values.sum()))
            assert float(epsilon[n]) == (np.floor(margin / fall * 64) + 1) / 64
