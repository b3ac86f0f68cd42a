"""The loop of rays and rounds on scripted margins: lanes that take turns change nothing, and keep a device busy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import epsilons_of, images_and_maps, small_network

import apem_fast as af
from apem_fast.probing.batch_prober import BatchProber
from apem_fast.probing.engine import BATCHES_A_ROUND, find_flips
from apem_fast.probing.prober import Answers, Prober
from apem_fast.probing.rays import Rays
from apem_fast.running.waiting import in_turns, result_of
from apem_fast.search import Exhaustive, Isolate

LAST = 200


class Scripted(Prober):
    """A prober of straight rays: ray i flips at step `flip[i]`, or not at all; `log` says what was started and read."""

    def __init__(self, flip, size, lanes, refuted=()):
        self.flip, self.refuted = np.asarray(flip), set(refuted)
        self._size, self._lanes = size, lanes
        self.log, self.asked = [], []

    @property
    def size(self) -> int:
        return self._size

    @property
    def lanes(self) -> int:
        return self._lanes

    @property
    def rays(self) -> Rays:
        n, none = len(self.flip), torch.zeros(0)
        margin = self.flip - 0.5
        return Rays(
            none,
            none,
            none,
            none,
            np.zeros(n, int),
            np.zeros(n, int),
            np.zeros(n, bool),
            np.ones(n),
            np.zeros(n),
            margin,
            np.ones(n),
        )

    def answers(self, ray, epsilon):
        number = len(self.asked)
        self.asked.append(len(ray))
        self.log.append(("start", number))
        yield
        self.log.append(("read", number))
        margin = self.flip[ray] - 0.5 - epsilon
        return Answers(margin, margin < 0, np.zeros(len(ray)), np.ones(len(ray), np.int64))

    def confirm(self, ray, epsilon):
        """A ray to be refuted is refuted once."""
        wrong = np.array([int(r) in self.refuted for r in ray], bool)
        if wrong.any():
            yield
        self.refuted -= set(ray[wrong].tolist())
        return wrong, wrong.astype(np.int64)


def flips_of(prober, policy):
    progress = []
    flips = find_flips(prober, policy, step=1.0, last_step=LAST, progress=lambda *said: progress.append(said))
    assert progress[-1] == (len(prober.flip), len(prober.flip), int(flips.probes.sum()))
    assert [said[0] for said in progress] == sorted(said[0] for said in progress)
    return flips


@settings(deadline=None, max_examples=60)
@given(
    flip=st.lists(st.integers(1, 2 * LAST), min_size=1, max_size=120),
    size=st.sampled_from([1, 4, 16]),
    lanes=st.integers(1, 4),
    policy=st.sampled_from([Isolate(), Exhaustive()]),
    refuted=st.sets(st.integers(0, 119), max_size=5),
)
def test_every_ray_gets_its_own_flip(flip, size, lanes, policy, refuted):
    prober = Scripted(flip, size, lanes, refuted & set(range(len(flip))))
    flips = flips_of(prober, policy)
    assert flips.step.tolist() == [min(f, LAST) for f in flip]
    assert flips.flipped.tolist() == [f <= LAST for f in flip]
    assert not prober.refuted and (flips.probes > 0).all()


def test_batches_are_full_while_rays_wait():
    flip = np.random.default_rng(0).integers(1, LAST, 4000)
    for lanes in (1, 2):
        prober = Scripted(flip, 16, lanes)
        flips_of(prober, Isolate())
        full = [asked % 16 == 0 for asked in prober.asked]
        assert all(full[: len(full) * 9 // 10])
        assert max(prober.asked) == BATCHES_A_ROUND // lanes * 16


def test_the_device_has_work_while_an_answer_is_read():
    prober = Scripted(np.random.default_rng(0).integers(1, LAST, 1000), 16, 2)
    flips_of(prober, Isolate())
    under_way, idle = 0, 0
    for kind, _ in prober.log:
        under_way += 1 if kind == "start" else -1
        idle += under_way == 0
    alone = sum(asked <= 16 for asked in prober.asked)  # once what is left fits one batch, one lane has it all
    assert idle <= alone < 0.1 * len(prober.asked)


def test_one_lane_reads_before_it_asks_again():
    prober = Scripted(np.arange(1, 100), 4, 1)
    flips_of(prober, Exhaustive())
    assert [kind for kind, _ in prober.log] == ["start", "read"] * len(prober.asked)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_change_no_epsilon_of_a_network(monkeypatch, lanes, precision):
    model = small_network()
    images, relevance = images_and_maps(12)
    grid = {"step": 0.25, "max_epsilon": 40.0, "batch_size": 4}
    expected = af.apem(model, images, relevance, **grid)
    monkeypatch.setattr(BatchProber, "lanes", lanes)
    result = af.apem(model, images, relevance, precision=precision, **grid)
    assert epsilons_of(result) == epsilons_of(expected)


def test_turns():
    log = []

    def lane(name, pauses):
        for turn in range(pauses):
            log.append((name, turn))
            yield
        return name

    in_turns([lane("a", 3), lane("b", 1), lane("c", 0)])
    assert log == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]
    assert result_of(lane("d", 2)) == "d"
