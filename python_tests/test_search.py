"""Search policies against scripted margin curves: no network, no tensor."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apem_fast.search import (
    CENSORED,
    POLICIES,
    UNDECIDED,
    Clearing,
    Exhaustive,
    Isolate,
    Measured,
    Resumable,
    policy_of,
)

LAST = 400


def first_flip_by_hand(curve):
    """Least step k >= 1 with a negative margin, or CENSORED."""
    for k in range(1, len(curve)):
        if curve[k] < 0:
            return k
    return CENSORED


def search(policy, curves, room=1, part=None):
    """Runs a policy on scripted curves; returns the answers and the probes of each ray. `part` tells rows in parts."""
    curves = np.asarray(curves, float)
    state = policy.start(curves[:, 0], np.abs(curves[:, 0] - curves[:, 1]), curves.shape[1] - 1)
    probes = np.zeros(len(curves), int)
    seen = set()
    while len(state.undecided):
        row, step = policy.ask(state, room)
        assert len(row) and set(row) <= set(state.undecided)
        if part is not None and len(row) > part:
            keep = np.isin(row, np.unique(row)[:part])
            row, step = row[keep], step[keep]
        for pair in zip(row.tolist(), step.tolist()):
            # A stack of three points forgets the farthest, and may come to ask for it again; so may what was measured
            # ahead, where there was room.
            assert pair not in seen or room > 1 or getattr(policy, "depth", 16) < 16, f"{policy} asked twice for {pair}"
            seen.add(pair)
        assert (step >= 1).all()
        np.add.at(probes, row, 1)
        margin = curves[row, np.minimum(step, curves.shape[1] - 1)]  # a search may look beyond the last step
        before = state
        frozen = {f.name: np.copy(getattr(before, f.name)) for f in dataclasses.fields(before)}
        state = policy.tell(state, Measured(row, step, margin, margin < 0))
        for name, value in frozen.items():
            np.testing.assert_array_equal(getattr(before, name), value, err_msg="tell changed its argument")
    return state.first_flip, probes


k = np.arange(LAST + 1)
CURVES = {
    "straight": 2 - 0.013 * k,
    "flips at the first step": 0.5 - 1.0 * k,
    "flips at the last step": np.where(k < LAST, 1.0 - 0.9 * k / LAST, -0.01),
    "flattens by two orders": 3 * np.exp(-k / 60) - 0.02,
    "steepens": 2 - (k / 150.0) ** 3,
    "never": 1 + 0.1 * np.sin(k / 30),
    "falls, but never through": 0.3 + 2 * np.exp(-k / 40),
    "flips and comes back": 1 - 1.2 * np.exp(-(((k - 150) / 40) ** 2)),
    "two dips, the first too shallow": 1
    - 0.9 * np.exp(-(((k - 80) / 30) ** 2))
    - 1.3 * np.exp(-(((k - 250) / 30) ** 2)),
    "waves that reach down": 1.2 - k / 300 + 0.5 * np.cos(k / 25),
    "constant": np.full(LAST + 1, 0.7),
}


@pytest.mark.parametrize("room", [1, 64])
@pytest.mark.parametrize(
    "policy", [Exhaustive(), Isolate(), Isolate(safety=2), Isolate(safety=5, depth=3), policy_of("careful")], ids=repr
)
def test_finds_the_first_flip(policy, room):
    answers, _ = search(policy, list(CURVES.values()), room)
    assert dict(zip(CURVES, answers)) == {name: first_flip_by_hand(curve) for name, curve in CURVES.items()}


def test_a_ray_is_searched_alike_alone_and_among_others():
    together, probes = search(Isolate(), list(CURVES.values()))
    for i, curve in enumerate(CURVES.values()):
        answer, alone = search(Isolate(), [curve])
        assert answer[0] == together[i] and alone[0] == probes[i]


def test_rows_may_be_answered_in_parts():
    whole, probes = search(Isolate(), list(CURVES.values()))
    parts, probes_in_parts = search(Isolate(), list(CURVES.values()), part=2)
    np.testing.assert_array_equal(whole, parts)
    np.testing.assert_array_equal(probes, probes_in_parts)


def test_exhaustive_measures_every_step_up_to_the_flip_and_none_beyond_its_block():
    answers, probes = search(Exhaustive(), list(CURVES.values()), room=1)
    expected = [answer if answer != CENSORED else LAST for answer in answers]
    np.testing.assert_array_equal(probes, expected)
    _, blocks = search(Exhaustive(), [CURVES["straight"]], room=16)
    assert answers[0] <= blocks[0] < answers[0] + 16


def test_probes_hardly_grow_with_the_distance():
    """A straight ray takes a few probes wherever it flips; one that flattens a few more each time it is ten times as
    far."""
    steps = np.arange(20001)
    for flip in (10, 100, 1000, 10000):
        _, straight = search(Isolate(steep=20000), [flip - 0.5 - steps])
        _, flattening = search(Isolate(steep=20000), [np.exp(-3 * steps / flip) - np.exp(-3 + 1.5 / flip)])
        assert straight[0] <= 4
        assert flattening[0] <= 6 + 4 * np.log10(flip)


def test_an_almost_empty_batch_is_filled():
    """With room for many times the rays, a ray asks for several points at once and is decided in fewer rounds."""
    curves = [CURVES["flattens by two orders"], CURVES["steepens"]]
    asked = {}
    for room in (1, 1000):
        state = Isolate().start(np.array([c[0] for c in curves]), np.full(2, 0.02), LAST)
        rounds = 0
        while len(state.undecided):
            row, step = Isolate().ask(state, room)
            rounds += 1
            margin = np.array([curves[r][min(s, LAST)] for r, s in zip(row, step)])
            state = Isolate().tell(state, Measured(row, step, margin, margin < 0))
        asked[room] = rounds
        assert list(state.first_flip) == [first_flip_by_hand(curve) for curve in curves]
    assert asked[1000] < asked[1]


def test_a_tie_can_flip():
    """A margin of exactly 0 is a flip when another class is named first."""
    policy = Isolate()
    state = policy.start(np.array([1.0]), np.array([0.5]), 8)
    while len(state.undecided):
        row, step = policy.ask(state, 1)
        margin = np.maximum(0, 1 - 0.5 * step)  # 0 from step 2 on, and always a flip there
        state = policy.tell(state, Measured(row, step, margin.astype(float), step >= 2))
    assert state.first_flip[0] == 2


def test_rows_leave_and_come():
    policy = Isolate()
    old = policy.start(np.array([1.0, 2.0, 3.0]), np.ones(3), 10)
    new = old.only(np.array([0, 2])).joined(policy.start(np.array([9.0]), np.array([4.0]), 10))
    np.testing.assert_array_equal(new.margin, [1, 3, 9])
    np.testing.assert_array_equal(old.margin, [1, 2, 3])
    assert (new.first_flip == UNDECIDED).all() and new.last_step == 10


@pytest.mark.parametrize("policy", [policy_of(name) for name in ("isolate", "fast", "careful")], ids=repr)
def test_no_answer_depends_on_where_the_search_may_end(policy):
    """Flips below all limits; one of the curves has a dip at 150, 30 wide, that a share of a long grid hides."""
    steps = np.arange(256 * 1024 + 1)
    dip = 1 - 1.3 * np.exp(-0.5 * ((steps - 150) / (30 / 2.355)) ** 2) - steps / 1e5
    curves = [
        dip,
        2 - 0.013 * steps,
        3 * np.exp(-steps / 60) - 0.02 - steps / 1e6,
        1.2 - steps / 300 + 0.3 * np.cos(steps / 25),
    ]
    answers = []
    for last in (256, 300, 512, 1024, 4096, 65536):
        state = policy.start(np.array([c[0] for c in curves]), np.array([c[0] - c[1] for c in curves]), last)
        while len(state.undecided):
            row, step = policy.ask(state, 1)
            margin = np.array([curves[r][s] for r, s in zip(row, step)])
            state = policy.tell(state, Measured(row, step, margin, margin < 0))
        answers.append([a if a != CENSORED and a <= 256 else CENSORED for a in state.first_flip.tolist()])
        assert all(a <= last for a in state.first_flip)
    assert answers == answers[:1] * len(answers)
    assert answers[0][1] == first_flip_by_hand(curves[1][:300])
    if policy != policy_of("fast"):
        assert answers[0][0] == first_flip_by_hand(dip[:300])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), room=st.sampled_from([20, 64, 1000]))
def test_no_answer_depends_on_the_room_in_a_batch(seed, room):
    """On curves so rough that the search often misses the first flip: it misses the same."""
    random = np.random.default_rng(seed)
    waves = np.cos(random.uniform(0, 60, (4, 40, 1)) * k / LAST + random.uniform(0, 6.3, (4, 40, 1))).sum(axis=1)
    curves = 1.5 - k / LAST + 0.12 * (waves - waves[:, :1])
    alone, _ = search(Isolate(), curves)
    together, _ = search(Isolate(), curves, room)
    np.testing.assert_array_equal(alone, together)


def test_misses_few_flips_of_smooth_curves():
    """Sums of slow cosines over an exponential fall: smooth on the scale of the grid, of any overall shape. No bound
    holds on all of them; of 1,500 such curves 1 % hid a dip from it."""
    random, missed, curves = np.random.default_rng(0), 0, 300
    for _ in range(curves):
        last, start, flat = int(random.choice([7, 60, 300])), random.uniform(0.05, 5), random.uniform(5, 200)
        knots, steps = random.uniform(-1, 1, random.integers(4, 10)), np.arange(last + 1)
        wave = sum(a * np.cos(np.pi * j * steps / last) for j, a in enumerate(knots, 1)) / len(knots)
        curve = start * (0.5 * np.exp(-steps / flat) + wave - wave[0] + 0.5)
        exact = first_flip_by_hand(curve)
        assert search(Exhaustive(), [curve])[0][0] == exact
        found = search(Isolate(safety=4), [curve])[0][0]
        assert found == CENSORED or curve[found] < 0, "what is reported was seen"
        missed += found != exact
    assert missed <= 0.03 * curves


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"safety": 1.0}, r"Isolate: safety must be greater than 1 \(got 1\)"),
        ({"spread": -1}, r"Isolate: spread must be at least 0 \(got -1\)"),
        ({"flat": 300}, r"Isolate: flat must be at least 1 and at most steep=256 \(got 300\)"),
        ({"growth": 1.5}, r"Isolate: growth must lie in \[0, 1\] \(got 1.5\)"),
        ({"depth": 1}, r"Isolate: depth must be at least 2 \(got 1\)"),
    ],
)
def test_bad_options(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Isolate(**options)


def test_policies_by_name():
    assert policy_of("isolate") == Isolate() and policy_of("exhaustive") == Exhaustive()
    assert policy_of(Isolate(safety=9)).safety == 9
    with pytest.raises(
        ValueError,
        match=r'search must be "isolate" or "fast" or .* or "certified" or a policy \(got "bisect"\)',
    ):
        policy_of("bisect")
    with pytest.raises(TypeError, match=r"search must be a name or a policy .* \(got int\)"):
        policy_of(3)


@pytest.mark.parametrize("name", POLICIES)
def test_the_policies_that_have_names_can_do_what_they_may(name):
    policy = policy_of(name)
    assert isinstance(policy.start(np.ones(1), np.ones(1), 9), Clearing)
    assert isinstance(policy, Resumable) == (name not in ("exhaustive", "certified"))
