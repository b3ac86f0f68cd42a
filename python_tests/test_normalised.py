"""APEM normalised by shuffled maps, against ten full searches and the literal loop; and the least flip of siblings."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from networks import images_and_maps, literal_epsilons, small_network
from torch import nn

import apem_fast as af
from apem_fast.metric import normalised
from apem_fast.metric.normalised import shuffled_epsilons
from apem_fast.probing.siblings import Families
from apem_fast.relevance import shuffled
from apem_fast.search import CENSORED, Exhaustive, Isolate, Measured, Probes

GRID = {"step": 0.25, "max_epsilon": 40.0}


def literal_shuffles(model, image, relevance, shuffles, seed=0, **grid):
    """P2 section 5.2: every shuffled map in turn; a flip of any of them sets the epsilon."""
    each = [
        literal_epsilons(model, image, shuffled(relevance[None], seed, k)[0], grid["step"], grid["max_epsilon"])
        for k in range(shuffles)
    ]
    return [(min(epsilon[ray][0] for epsilon in each), any(epsilon[ray][1] for epsilon in each)) for ray in (0, 1)]


def rows_of(chance) -> list[list[tuple[float, bool]]]:
    columns = (chance.epsilon_minus, chance.flipped_minus, chance.epsilon_plus, chance.flipped_plus)
    return [[(a, b), (c, d)] for a, b, c, d in zip(*(column.tolist() for column in columns))]


@pytest.mark.parametrize("map_channels", [1, 3])
@pytest.mark.parametrize("search", ["exhaustive", "isolate"])
def test_equals_the_literal_loop_over_the_shuffles(search, map_channels):
    model = small_network()
    images, relevance = images_and_maps(4, map_channels=map_channels)
    result = af.apem_norm(model, images, relevance, shuffles=4, search=search, **GRID)
    expected = [literal_shuffles(model, x, r, 4, **GRID) for x, r in zip(images, relevance)]
    assert rows_of(result.shuffled) == expected
    assert {flipped for row in expected for _, flipped in row} == {True, False}  # some rays must be censored
    plain = af.apem(model, images, relevance, search=search, **GRID)
    for field in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus", "labels"):
        assert torch.equal(getattr(result.apem, field), getattr(plain, field))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("search", [Isolate(), Isolate(safety=5.0), Exhaustive()], ids=repr)
def test_cut_off_searches_find_the_least_of_the_full_ones(search, batch_size):
    model = small_network()
    images, relevance = images_and_maps(6)
    step = 0.5 if isinstance(search, Exhaustive) else 0.1
    evaluator = af.Evaluator(model, images, search=search, batch_size=batch_size, step=step, max_epsilon=20.0)
    full = evaluator.apem({str(k): shuffled(relevance, 7, k) for k in range(10)})
    chance = shuffled_epsilons(evaluator, relevance, seed=7)
    for sign in ("minus", "plus"):
        epsilons = torch.stack([getattr(one, f"epsilon_{sign}") for one in full.values()])
        flipped = torch.stack([getattr(one, f"flipped_{sign}") for one in full.values()])
        assert torch.equal(getattr(chance, f"epsilon_{sign}"), epsilons.amin(dim=0))
        assert torch.equal(getattr(chance, f"flipped_{sign}"), flipped.any(dim=0))
    # (Once the last batch is filled with rays that might have waited, little is left to save.)
    assert chance.probes.sum() < sum(one.probes.sum() for one in full.values()) or batch_size == 64


def test_is_cheaper_than_ten_searches():
    model = small_network()
    images, relevance = images_and_maps(6)
    evaluator = af.Evaluator(model, images, batch_size=1, step=0.05, max_epsilon=40.0)
    full = evaluator.apem({str(k): shuffled(relevance, 0, k) for k in range(10)})
    chance = shuffled_epsilons(evaluator, relevance)
    seen = chance.flipped_minus & chance.flipped_plus  # without a flip there is nothing to cut off
    assert seen.sum() >= 3
    assert chance.probes[seen].sum() < 0.8 * sum(one.probes[seen].sum() for one in full.values())


def test_neither_other_images_nor_memory_change_a_shuffle(monkeypatch):
    model = small_network()
    images, relevance = images_and_maps(5)
    whole = af.apem_norm(model, images, relevance, shuffles=3, **GRID)
    alone = [af.apem_norm(model, x[None], r[None], shuffles=3, **GRID) for x, r in zip(images, relevance)]
    assert rows_of(whole.shuffled) == [row for one in alone for row in rows_of(one.shuffled)]
    seen = []
    monkeypatch.setattr(normalised, "MAPS_AT_ONCE", 7)
    monkeypatch.setattr(af.Evaluator, "rays", _recorded(af.Evaluator.rays, seen))
    few = af.apem_norm(model, images, relevance, shuffles=3, **GRID)
    assert rows_of(few.shuffled) == rows_of(whole.shuffled)
    assert max(seen[1:]) <= 7 and len(seen) == 1 + 3  # the map itself, then 2 + 2 + 1 images' shuffles


def _recorded(method, seen):
    def rays(self, maps, image_of_map):
        seen.append(len(maps))
        return method(self, maps, image_of_map)

    return rays


def test_the_generator_seeds_the_shuffles():
    model = small_network()
    images, relevance = images_and_maps(4)
    options = {"shuffles": 2, "step": 0.01, "max_epsilon": 30.0}

    def run(seed):
        return af.apem_norm(model, images, relevance, generator=torch.Generator().manual_seed(seed), **options).shuffled

    assert rows_of(run(1)) == rows_of(run(1)) != rows_of(run(2))
    before = torch.get_rng_state()
    default = af.apem_norm(model, images, relevance, **options).shuffled
    assert rows_of(default) == rows_of(af.apem_norm(model, images, relevance, **options).shuffled)
    assert torch.equal(before, torch.get_rng_state())


def test_scores_and_table():
    model = small_network()
    images, relevance = images_and_maps(5)
    result = af.apem_norm(model, images, relevance, shuffles=3, **GRID)
    a, s = result.apem, result.shuffled
    expected = [
        a.epsilon_plus[i].item() / s.epsilon_plus[i].item() - a.epsilon_minus[i].item() / s.epsilon_minus[i].item()
        for i in range(5)
    ]
    assert result.score.tolist() == expected
    assert result.mean == pytest.approx(np.mean(expected)) and result.median == pytest.approx(np.median(expected))
    table = result.to_dataframe()
    assert list(table["score_norm"]) == expected
    assert {
        "shuffled_epsilon_minus",
        "shuffled_epsilon_plus",
        "shuffled_flipped_minus",
        "shuffled_flipped_plus",
        "score",
        "epsilon_minus",
        "label",
    } <= set(table)
    exact = a.flipped_minus & a.flipped_plus & s.flipped_minus & s.flipped_plus
    assert torch.equal(result.censored, ~exact) and 0 < exact.sum() < 5
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.apem = None


def test_a_uniform_map_is_its_own_shuffle():
    model = small_network()
    images, _ = images_and_maps(3)
    result = af.apem_norm(model, images, torch.full((3, 1, 16, 16), 0.25), shuffles=3, **GRID)
    assert result.score.tolist() == [0.0, 0.0, 0.0]


class Marching:
    """A policy of one's own that does not say how far it has cleared: steps of one."""

    def __init__(self):
        self.inner = Exhaustive()

    def start(self, margin, slope, last_step):
        state = self.inner.start(margin, slope, last_step)
        return _Plain(state.first_flip, last_step, state.reached)

    def ask(self, state, room):
        row = state.undecided
        return Probes(row, state.at[row] + 1)

    def tell(self, state, measured: Measured):
        at, first = state.at.copy(), state.first_flip.copy()
        at[measured.row] = measured.step
        first[measured.row[measured.step == state.last_step]] = CENSORED
        first[measured.row[measured.flipped]] = measured.step[measured.flipped]
        return _Plain(first, state.last_step, at)


@dataclasses.dataclass(frozen=True)
class _Plain(af.search.State):
    at: np.ndarray


def test_a_policy_of_ones_own_is_searched_to_the_end():
    model = small_network()
    images, relevance = images_and_maps(3)
    with pytest.warns(UserWarning, match="apem_norm: the search policy Marching does not say how far rays are cleared"):
        own = af.apem_norm(model, images, relevance, shuffles=2, search=Marching(), **GRID)
    assert rows_of(own.shuffled) == rows_of(af.apem_norm(model, images, relevance, shuffles=2, **GRID).shuffled)


def test_only_the_leader_goes_until_it_is_settled():
    families = Families(np.array([0, 0, 0, 1, 1]), np.array([101, 40]), np.array([-1, 4]))
    rank = np.array([3, 0, 2, 1, 4])
    state = Exhaustive().start(np.ones(5), np.ones(5), 100)
    assert families.open(state).tolist() == [0, 1, 2, 3, 4]
    rows, needed = families.worthwhile(families.open(state), rank)
    assert sorted(rows[:needed].tolist()) == [1, 4]  # the likeliest of the first family, the leader of the second
    state.reached[4] = 39  # which is settled now: its sibling may go
    rows, needed = families.worthwhile(families.open(state), rank)
    assert sorted(rows[:needed].tolist()) == [1, 3]
    state.reached[3] = 39  # and need not look beyond
    assert families.open(state).tolist() == [0, 1, 2]
    after = families.told(np.array([2, 0]), np.array([30, 50]))
    assert after.known.tolist() == [30, 40] and after.leader.tolist() == [2, 4]


def test_progress_and_stopping():
    model = small_network()
    images, relevance = images_and_maps(3)
    heard = []
    result = af.apem_norm(model, images, relevance, shuffles=2, progress=lambda *now: heard.append(now), **GRID)
    assert heard[-1] == (18, 18, int(result.apem.probes.sum() + result.shuffled.probes.sum()))
    assert [now[2] for now in heard] == sorted(now[2] for now in heard) and {now[1] for now in heard} == {18}

    def stop(done, total, probes):
        if done > 6:
            raise KeyboardInterrupt

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyboardInterrupt):
        af.apem_norm(model, images, relevance, shuffles=2, progress=stop, **GRID)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "changes, error, sentence",
    [
        ({"shuffles": 0}, ValueError, r"apem_norm: shuffles must be at least 1 \(got 0\)"),
        ({"shuffles": 2.5}, TypeError, r"apem_norm: shuffles must be a whole number \(got float\)"),
        ({"generator": 3}, TypeError, r"apem_norm: generator must be a torch.Generator or None \(got int\)"),
        ({"relevance": torch.zeros(2, 1, 16, 16)}, ValueError, r"apem_norm: relevance must not be all 0, .*"),
        ({"model": nn.Identity}, TypeError, r"apem_norm: model must be a torch.nn.Module \(got type\)"),
    ],
)
def test_bad_input_is_one_sentence(changes, error, sentence):
    images, relevance = images_and_maps(2)
    arguments = {"model": small_network(), "images": images, "relevance": relevance, **GRID, **changes}
    with pytest.raises(error, match=f"^{sentence}$"):
        af.apem_norm(**arguments)
