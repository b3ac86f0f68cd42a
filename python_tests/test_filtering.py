"""The explanation filter against a literal Algorithm 2, and its search along the levels against scripted margins."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from algorithm2 import literal_filter
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import images_and_maps, small_network
from test_metric import NoisyThenBroken, _replaced, assert_same, snapshot

import apem_fast as af
from apem_fast.filter.level_ray import LevelMargin
from apem_fast.filter.level_search import Filtered, Start, filter_levels
from apem_fast.filter.levels import IRRELEVANCE, RELEVANCE, count_levels, levels_of
from apem_fast.filter.stopping import LevelFlips, StoppingRule, Watch
from apem_fast.margin_curve import margin_curve
from apem_fast.probing import rays
from apem_fast.probing.batch_prober import BatchProber
from apem_fast.probing.level_prober import LevelProber
from apem_fast.running.clean import run_clean
from apem_fast.running.waiting import result_of
from apem_fast.search import CENSORED, Exhaustive, Isolate

GRID = {"step": 1.0, "max_epsilon": 60.0}
STOPS = {"dropped": af.Stop.DROPPED, "empty": af.Stop.WOULD_BE_EMPTY, "censored": af.Stop.CENSORED}


def coarse(maps: torch.Tensor, values: int) -> torch.Tensor:
    """Maps of at most so many distinct positive values: many ties, and some zeros."""
    return (maps * values).round() / values


def sparse(maps: torch.Tensor, keep: int) -> torch.Tensor:
    """Maps that are 0 everywhere but at every `keep`-th value."""
    flat = maps.flatten(1)
    return torch.where(torch.arange(flat.shape[1]) % keep == 0, flat, 0).view_as(maps)


def changes(scores: list) -> list:
    """(level, score) wherever a score differs from the one before."""
    return [(t, score) for t, score in enumerate(scores) if t == 0 or score != scores[t - 1]]


# -- against the literal algorithm -------------------------------------------------------------------------------

CASES = {
    "ties": dict(change=lambda r: coarse(r, 12)),
    "zeros": dict(change=lambda r: sparse(r, 19), seed=1),
    "a map of every channel": dict(change=lambda r: coarse(r, 8), map_channels=3, seed=2),
    "a fine grid": dict(change=lambda r: coarse(r, 5), seed=3, grid={"step": 0.25, "max_epsilon": 40.0}),
    "a small drop is none": dict(change=lambda r: coarse(r, 12), min_drop=2.0, seed=4),
    "no drop is one": dict(change=lambda r: coarse(r, 12), min_drop=1000.0, seed=5),
    "censored": dict(change=lambda r: coarse(r, 12), min_drop=1000.0, seed=6, grid={"step": 1.0, "max_epsilon": 24.0}),
    "double precision": dict(change=lambda r: coarse(r, 12), dtype=torch.float64, seed=7),
    "few levels": dict(change=lambda r: coarse(r, 2), seed=0),
    "one level": dict(change=lambda r: (r > 0.3).to(r.dtype), seed=8),
}


LITERAL: dict = {}  # each case's answers serve both searches


def literal_answer(case, model, image, values, min_drop, i):
    if (case, i) not in LITERAL:
        grid = CASES[case].get("grid", GRID)
        LITERAL[case, i] = literal_filter(model, image, values, min_drop=min_drop, **grid)
    return LITERAL[case, i]


@pytest.mark.parametrize("search", ["exhaustive", "isolate"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_literal_algorithm(case, search):
    options = dict(CASES[case])
    change, grid, dtype = options["change"], options.get("grid", GRID), options.get("dtype", torch.float32)
    min_drop, seed = options.get("min_drop", 0.0), options.get("seed", 0)
    model = small_network(seed, dtype=dtype)
    images, maps = images_and_maps(2, map_channels=options.get("map_channels", 1), seed=seed, dtype=dtype)
    maps = change(maps)
    result = af.filter_relevance(model, images, maps, search=search, min_drop=min_drop, batch_size=8, **grid)
    for i in range(len(images)):
        best, scores, ended = literal_answer(case, model, images[i], maps[i], min_drop, i)
        assert result.stopped[i] is STOPS[ended]
        assert torch.equal(result.relevance[i], best)
        kept = len(scores) - (1 if ended == "empty" else 2)
        assert result.levels_removed[i] == kept and result.levels[i] == len(maps[i][maps[i] > 0].unique())
        assert (
            result.score_before[i] == scores[0] * grid["step"] and result.score_after[i] == scores[kept] * grid["step"]
        )
        assert result.removed[i] == ((maps[i] > 0) & (best == 0)).sum()
        assert result.removed_share[i] == pytest.approx(
            float(1 - best.double().sum() / maps[i].double().sum()), abs=1e-12
        )
        curve = result.curves[i]
        seen = dict(zip(curve.level.tolist(), (curve.score / grid["step"]).round().tolist()))
        assert all(seen[t] == score for t, score in changes(scores) if score is not None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["random", "gradient"])
def test_isolate_equals_exhaustive_on_maps_of_many_levels(seed, kind):
    model = small_network(seed)
    images, maps = images_and_maps(2, seed=100 + seed)
    if kind == "gradient":
        maps = af.relevance_map(run_clean(model, images).loss_gradient)
    options = {"step": 2.0, "max_epsilon": 60.0, "min_drop": (0.0, 2.0)[seed % 2], "batch_size": 32}
    slow = af.filter_relevance(model, images, maps, search="exhaustive", **options)
    fast = af.filter_relevance(model, images, maps, search="isolate", **options)
    assert torch.equal(fast.relevance, slow.relevance) and fast.stopped == slow.stopped
    for a, b in zip(fast.curves, slow.curves):
        assert_same(vars(a), vars(b))
    assert fast.probes.sum() * 3 < slow.probes.sum()


@pytest.mark.parametrize("levels", [1, 2, 7, 10_000])
def test_levels_are_grouped_into_steps_of_equally_many_values(levels):
    model = small_network()
    images, maps = images_and_maps(2)
    result = af.filter_relevance(model, images, maps, levels=levels, min_drop=0.0, **GRID)
    for i, values in enumerate(maps):
        distinct = values[values > 0].unique()
        groups = min(levels, len(distinct))
        assert result.levels[i] == groups
        ends = [distinct[t * len(distinct) // groups - 1] for t in range(1, groups)]
        grouped = values.clone()  # the same steps, as levels of a map of their own
        for below, end in zip([torch.tensor(0.0), *ends], [*ends, distinct[-1]]):
            grouped[(values > below) & (values <= end)] = end
        scores = [
            af.apem(model, images[i : i + 1], torch.where(values <= end, 0, values)[None], **GRID).score.item()
            for end in (torch.tensor(0.0), *ends[:20])
        ]
        kept = next((t for t in range(1, len(scores)) if scores[t] < scores[t - 1]), len(scores)) - 1
        if kept < 20:
            assert result.levels_removed[i] == kept
            threshold = ends[kept - 1] if kept else torch.tensor(0.0)
            assert torch.equal(result.relevance[i], torch.where(values <= threshold, 0, values))
        assert (result.relevance[i] > 0).any()


@pytest.mark.parametrize("batch_size", [1, 5, 64, None])
def test_depends_on_neither_batch_nor_company(batch_size):
    model = small_network()
    images, maps = images_and_maps(5)
    together = af.filter_relevance(model, images, maps, batch_size=batch_size, **GRID)
    alone = [af.filter_relevance(model, images[i : i + 1], maps[i : i + 1], batch_size=4, **GRID) for i in range(5)]
    assert torch.equal(together.relevance, torch.cat([result.relevance for result in alone]))
    assert together.stopped == sum((result.stopped for result in alone), ())
    for i, result in enumerate(alone):
        assert_same(vars(together.curves[i]), vars(result.curves[0]))


def test_the_cases_end_in_every_way():
    """The oracle is worth something only if it sees all of them, a drop at once among them."""
    model = small_network()
    images, maps = images_and_maps(8)
    ended = set()
    for values in (2, 3, 4):
        result = af.filter_relevance(model, images, coarse(maps, values), **GRID)
        ended |= {(stop, int(n) == 0) for stop, n in zip(result.stopped, result.levels_removed)}
    assert ended >= {
        (af.Stop.DROPPED, True),
        (af.Stop.DROPPED, False),
        (af.Stop.WOULD_BE_EMPTY, False),
        (af.Stop.CENSORED, False),
    }


# -- along the levels, without a network -------------------------------------------------------------------------


def scripted(surface, policy, rule, room=1):
    """Runs the level search on margins surface[ray](k, t); the answer and the probes it took."""
    relevance = torch.linspace(0.001, 1, surface.levels + 1).view(1, 1, -1)
    levels = levels_of(relevance, 1)
    start = Start(
        surface(0, 0, 0), (abs(surface(0, 1, 0) - surface(0, 0, 0)), abs(surface(1, 1, 0) - surface(1, 0, 0)))
    )
    search = filter_levels(policy, levels, start, rule, lambda: room)
    probes, wanted = 0, next(search)
    while True:
        replies = []
        for ray, level, step, gradient in wanted:
            assert 0 <= level <= levels.last and 1 <= step <= rule.last_step
            probes += 1
            margin = surface(ray, step, level)
            drift = surface.drift(ray, step) if gradient else None
            replies.append(LevelMargin(margin, margin < 0, 1e-9, drift))
        try:
            wanted = search.send(replies)
        except StopIteration as end:
            return end.value, probes


class Surface:
    """Margins that fall with k by a slope that wanders with the level, and flatten as they fall."""

    def __init__(self, levels, seed, rough, trend):
        generator = np.random.default_rng(seed)
        self.levels = levels
        t = np.arange(levels + 1)
        walk = generator.normal(size=(2, levels + 1)).cumsum(axis=1) * rough
        wave = 0.1 * np.sin(2 * np.pi * t / levels * generator.uniform(0.3, 3, (2, 1)))
        self.slope = 0.05 * np.exp(np.clip(walk + wave + np.array(trend)[:, None] * t / levels, -2, 2))

    def __call__(self, ray, k, t):
        return math.exp(-self.slope[ray, t] * k) - 0.2

    def drift(self, ray, k):
        """What a gradient at step k would say: exact at first order only, and the same at whatever level it is."""
        return -self.slope[ray] * math.exp(-self.slope[ray].mean() * k)


def same(one: Filtered, other: Filtered) -> bool:
    """Equal, and NaN to NaN: since Python 3.13 records with NaN differ from themselves."""
    return astuple(one) == astuple(other)


@settings(max_examples=50, deadline=None)
@given(
    levels=st.sampled_from([1, 2, 40, 200]),
    seed=st.integers(0, 10**6),
    rough=st.sampled_from([0.0, 0.002, 0.02]),
    trend=st.tuples(st.floats(-0.5, 0.8), st.floats(-0.8, 0.5)),
    most_lost=st.integers(0, 3),
    room=st.sampled_from([1, 4]),
    last_step=st.sampled_from([33, 80]),
    patience=st.sampled_from([0, 1, 7, 1000]),
    against=st.sampled_from(["previous", "start"]),
)
def test_following_equals_visiting_every_level(
    levels, seed, rough, trend, most_lost, room, last_step, patience, against
):
    surface = Surface(levels, seed, rough, trend)
    rule = StoppingRule(last_step, most_lost, patience, against)
    fast, _ = scripted(surface, Isolate(), rule, room)
    slow, _ = scripted(surface, Exhaustive(), rule, room)
    assert same(fast, slow)


def test_most_levels_need_no_probe():
    surface = Surface(2000, 1, 0.0, (0.2, -0.2))
    (fast, few), (slow, many) = (scripted(surface, p, StoppingRule(100, 50)) for p in (Isolate(), Exhaustive()))
    assert same(fast, slow) and fast.ending.stop is af.Stop.WOULD_BE_EMPTY and len(fast.changes) > 10
    assert few * 20 < many


def ending_of(flips, rule):
    """The ending that a watch comes to when it is shown every change, and the last level."""
    watch = Watch(rule)
    for level, (minus, plus) in enumerate(flips):
        changed = level == 0 or flips[level - 1] != (minus, plus)
        ending = watch.see(LevelFlips(level, minus, plus)) if changed else watch.ended(level)
        if ending is not None:
            return ending.level, ending.stop
    ending = watch.ended(len(flips) - 1, at_last=True)
    return None if ending is None else (ending.level, ending.stop)


@pytest.mark.parametrize(
    "before, after, most_lost, stop",
    [
        ((5, 9), (5, 9), 0, None),
        ((5, 9), (4, 8), 0, None),
        ((5, 9), (6, 9), 0, af.Stop.DROPPED),
        ((5, 9), (6, 9), 1, None),
        ((5, CENSORED), (6, CENSORED), 0, af.Stop.DROPPED),
        ((5, CENSORED), (5, 20), 0, af.Stop.CENSORED),
        ((CENSORED, CENSORED), (3, CENSORED), 0, af.Stop.CENSORED),
    ],
)
@pytest.mark.parametrize("against", ["previous", "start"])
def test_scores_are_compared_in_whole_steps_and_never_across_censoring(before, after, most_lost, stop, against):
    ended = ending_of([before, after], StoppingRule(20, most_lost, against=against))
    assert ended == (None if stop is None else (0, stop))


@settings(max_examples=300)
@given(
    scores=st.lists(st.integers(0, 6), min_size=2, max_size=40),
    most_lost=st.integers(0, 2),
    patience=st.integers(0, 6),
    against=st.sampled_from(["previous", "start"]),
)
def test_a_drop_is_a_fall_that_lasts(scores, most_lost, patience, against):
    """Straight from the words: the first level below its reference at which the score stays for `patience` more."""
    expected, level = None, 1
    while level < len(scores) and expected is None:
        reference = scores[0] if against == "start" else scores[level - 1]
        stays = [score < reference - most_lost for score in scores[level : level + patience + 1]]
        if all(stays):
            expected = (level - 1, af.Stop.DROPPED)
        level += max(stays.index(False), 1) if False in stays else 1
    flips = [(10, 10 + score) for score in scores]
    assert ending_of(flips, StoppingRule(50, most_lost, patience, against)) == expected


def test_the_margin_that_decided_and_the_size_of_the_fall_are_told():
    model = small_network()
    images, relevance = images_and_maps(4)
    result = af.filter_relevance(model, images, relevance, step=0.25, max_epsilon=40.0)
    dropped = [i for i, stop in enumerate(result.stopped) if stop is af.Stop.DROPPED]
    assert dropped
    for i in dropped:
        curve = result.curves[i]
        assert result.fell[i] == curve.score[-2] - curve.score[-1] > 0
        assert result.reasons[i] == (
            f"The score drops by {float(result.fell[i]):g} at the next level, decided by a margin of "
            f"{float(result.deciding_margin[i]):.2g}."
        )
        threshold = relevance[i][relevance[i] > 0].unique()[result.levels_removed[i]]
        values = torch.where(relevance[i] <= threshold, 0, relevance[i])[None]
        margins = []
        for kind, here, before in (("minus", -1, -2), ("plus", -1, -2)):
            epsilon = getattr(curve, f"epsilon_{kind}")
            if kind == "minus" and epsilon[here] > epsilon[before]:
                at = margin_curve(model, images[i : i + 1], values, epsilon[-1:] - 0.25)
                margins.append(float(at.margin_minus))
            if kind == "plus" and epsilon[here] < epsilon[before]:
                at = margin_curve(model, images[i : i + 1], values, epsilon[-1:])
                margins.append(float(at.margin_plus))
        assert abs(float(result.deciding_margin[i]) - min(margins, key=abs)) < 1e-5
    others = [i for i in range(4) if i not in dropped]
    assert result.fell[others].isnan().all() and result.deciding_margin[others].isnan().all()


def test_patience_and_the_start_take_more_away_and_end_no_lower():
    model = small_network()
    images, relevance = images_and_maps(6)
    grid = {"step": 0.25, "max_epsilon": 40.0, "search": "isolate"}
    paper = af.filter_relevance(model, images, relevance, **grid)
    patient = af.filter_relevance(model, images, relevance, patience=20, **grid)
    start = af.filter_relevance(model, images, relevance, against="start", patience=20, **grid)
    assert (patient.levels_removed >= paper.levels_removed).all()
    kept = [stop is not af.Stop.WOULD_BE_EMPTY for stop in start.stopped]
    assert (start.score_after >= start.score_before)[kept].all()
    assert patient.levels_removed.sum() > paper.levels_removed.sum()


@pytest.mark.parametrize(
    "option, sentence",
    [
        ({"patience": -1}, r"filter_relevance: patience must be at least 0 \(got -1\)"),
        ({"patience": 1.5}, r"filter_relevance: patience must be a whole number \(got float\)"),
        ({"against": "end"}, r"filter_relevance: against must be one of previous, start \(got 'end'\)"),
    ],
)
def test_bad_stopping_options(option, sentence):
    images, relevance = images_and_maps(1)
    with pytest.raises((TypeError, ValueError), match=sentence):
        af.filter_relevance(small_network(), images, relevance, **option)


# -- levels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("map_channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_norms_are_those_of_the_zeroed_map(map_channels, dtype):
    _, maps = images_and_maps(1, map_channels=map_channels, dtype=dtype)
    values = torch.where(maps[0] < 0.05, 0, maps[0])
    values[0, :4] = 0.5  # ties
    levels = levels_of(values, 3)
    distinct = values[values > 0].unique()
    assert levels.last == len(distinct) - 1 == count_levels(values) - 1
    for t in range(levels.last + 1):
        zeroed = torch.where(values <= levels.threshold[t], 0, values)
        assert levels.threshold[t] == (float(distinct[t - 1]) if t else 0)
        assert levels.zeroed[t] == int((values > 0).sum() - (zeroed > 0).sum())
        exact = [math.fsum(v.flatten().tolist()) * (3 // map_channels) for v in (zeroed, 1 - zeroed)]
        np.testing.assert_array_max_ulp(levels.norm[t], np.array(exact), maxulp=1)
        said = np.concatenate(rays.relevance_norms(zeroed[None], 3))
        np.testing.assert_array_equal(levels.norm[t].astype(np.float32), said.astype(np.float32))
    assert (np.diff(levels.path, axis=0) > 0).all()


@pytest.mark.parametrize("ray", [RELEVANCE, IRRELEVANCE])
@pytest.mark.parametrize("map_channels", [1, 3])
def test_a_gradient_says_how_margins_move_along_the_levels(ray, map_channels):
    model = small_network(dtype=torch.float64)
    images, maps = images_and_maps(2, map_channels=map_channels, dtype=torch.float64)
    evaluator = af.Evaluator(model, images, batch_size=4)
    some, levels, epsilon, at = evaluator.rays(maps, np.arange(2)), levels_of(maps[1], 3), 3.0, 40
    with evaluator.probing_exactly(some) as opened:
        prober = LevelProber(opened)

        def filtered_to(t):
            irrelevance = np.array([ray == IRRELEVANCE])
            return prober.rays(np.ones(1, np.int64), irrelevance, levels.norm[[t], ray], levels.threshold[[t]])

        def margin(t):
            return result_of(prober.answers(filtered_to(t), np.array([epsilon]))).margin[0]

        weight = prober.margin_gradient(filtered_to(at), epsilon).numpy()
        way = levels.along(weight, ray) * epsilon
        assert weight.shape == maps.shape[1:]
        moved = [margin(t) - margin(at) for t in range(at - 8, at + 9)]
    np.testing.assert_allclose(moved, way[at - 8 : at + 9] - way[at], atol=0.02 * np.abs(moved).max())


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_change_nothing(monkeypatch, lanes):
    model = small_network()
    images, maps = images_and_maps(5)
    options = {"step": 0.25, "max_epsilon": 40.0, "batch_size": 8}
    expected = af.filter_relevance(model, images, maps, **options)
    monkeypatch.setattr(BatchProber, "lanes", lanes)
    result = af.filter_relevance(model, images, maps, **options)
    assert torch.equal(result.relevance, expected.relevance) and result.stopped == expected.stopped
    assert torch.equal(result.score_after, expected.score_after)


class Foreign:
    """A policy of one's own that can do nothing but search."""

    def __init__(self):
        inner = Exhaustive()
        self.start, self.ask, self.tell = inner.start, inner.ask, inner.tell


def test_a_policy_that_cannot_resume_visits_every_level_and_says_so():
    model = small_network()
    images, maps = images_and_maps(2)
    options = {"step": 0.5, "max_epsilon": 20.0, "levels": 12}
    scanned = af.filter_relevance(model, images, maps, search="exhaustive", **options)
    with pytest.warns(
        UserWarning, match="filter_relevance: the search policy Foreign cannot continue from a neigh"
    ) as said:
        result = af.filter_relevance(model, images, maps, search=Foreign(), **options)
    assert len(said) == 1
    assert torch.equal(result.relevance, scanned.relevance) and torch.equal(result.probes, scanned.probes)


# -- nothing of the user's is changed; results; bad input --------------------------------------------------------


@pytest.mark.parametrize("calls", [10_000, 25])
def test_leaves_everything_as_it_was_also_after_an_exception(calls):
    inner = small_network()
    images, maps = images_and_maps(2)
    images.requires_grad_(True)
    model = NoisyThenBroken(inner, calls).eval()
    before, kept = snapshot(model, images), maps.clone()
    if calls == 10_000:
        af.filter_relevance(model, images, maps, batch_size=4, **GRID)
    else:
        with pytest.raises(KeyError, match="out of calls"):
            af.filter_relevance(model, images, maps, batch_size=4, **GRID)
    assert_same(before, snapshot(model, images))
    assert torch.equal(maps, kept) and images.grad is None


def test_progress_and_table():
    model = small_network()
    images, maps = images_and_maps(3)
    heard = []
    result = af.filter_relevance(model, images, maps, batch_size=4, progress=lambda *now: heard.append(now), **GRID)
    total = int(result.levels.sum())
    assert heard[-1] == (total, total, int(result.probes.sum())) and heard == sorted(heard)
    table = result.to_dataframe()
    assert table["stopped"].tolist() == list(result.reasons) and len(table) == 3
    assert (result.score_after >= result.score_before).all()  # no step lost anything


BAD = {
    "a constant map": (
        dict(relevance=_replaced(1, 0.5)),
        ValueError,
        r"filter_relevance: relevance must not be constant, which leaves nothing to filter "
        r"\(got 0.5 throughout at index 1\)",
    ),
    "a map of zeros": (
        dict(relevance=_replaced(0, 0.0)),
        ValueError,
        r"filter_relevance: relevance must not be all 0, .* \(got such a map at index 0\)",
    ),
    "negative values": (
        dict(relevance=_replaced((0, 0, 1, 1), -0.3)),
        ValueError,
        r"filter_relevance: relevance must lie in \[0, 1\] \(got min=-0.3, max=[\d.]+\); relevance_map makes .*",
    ),
    "levels of 0": (dict(levels=0), ValueError, r"filter_relevance: levels must be at least 1 \(got 0\)"),
    "levels of 2.5": (
        dict(levels=2.5),
        TypeError,
        r"filter_relevance: levels must be a whole number or None \(got float\)",
    ),
    "a negative min_drop": (
        dict(min_drop=-1.0),
        ValueError,
        r"filter_relevance: min_drop must be at least 0 and finite \(got -1\)",
    ),
    "min_drop not a number": (
        dict(min_drop="1"),
        TypeError,
        r"filter_relevance: min_drop must be a number \(got str\)",
    ),
    "an unknown search": (
        dict(search="bisect"),
        ValueError,
        r'filter_relevance: search must be "isolate" or "fast" or "careful" or "exhaustive" or "certified" or a policy '
        r'\(got "bisect"\)',
    ),
    "a model in training mode": (
        dict(model=lambda m: m.train()),
        ValueError,
        r"filter_relevance: model must be in eval mode, .*",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(case):
    changed, error, sentence = BAD[case]
    images, relevance = images_and_maps(2)
    arguments = {"model": small_network(), "images": images, "relevance": relevance, **GRID}
    for name, change in changed.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    with pytest.raises(error, match=f"^{sentence}$"):
        af.filter_relevance(**arguments)
