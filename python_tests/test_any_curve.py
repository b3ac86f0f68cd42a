"""What holds of every search whatever the margins do, and of the filter on any small network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from algorithm2 import literal_filter
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_search import first_flip_by_hand, search
from torch import nn

import apem_fast as af
from apem_fast.search import CENSORED, Exhaustive, Isolate, Measured, policy_of

POLICIES = [policy_of(name) for name in ("isolate", "fast", "careful")]
POLICIES += [Isolate(safety=1.5, spread=0, flat=1, steep=1, growth=0, depth=2), Isolate(flat=3, steep=40, growth=1)]
CASES = settings(suppress_health_check=list(HealthCheck))

# All that float32 logits can be apart, and less.
heights = st.floats(1e-45, 3e38) | st.sampled_from([5e-324, 1e-3, 1.0, 7.5, 6.8e38])
pieces = st.lists(st.tuples(st.integers(1, 60), heights, heights), min_size=1, max_size=6)


def joined(parts: list[tuple[int, float, float]]) -> np.ndarray:
    """Straight pieces of such lengths, from one height to another, with jumps between them."""
    return np.concatenate([np.linspace(begin, end, length) for length, begin, end in parts])


@CASES
@given(above=pieces, below=pieces | st.none(), room=st.sampled_from([1, 20, 300]), policy=st.sampled_from(POLICIES))
def test_what_flips_once_and_for_all_is_found_exactly(above, below, room, policy):
    """Any jumps, plateaus and peaks of any size before it and after it."""
    curve = joined(above) if below is None else np.concatenate([joined(above), -joined(below)])
    assume(len(curve) > 1)
    (found,), _ = search(policy, [curve], room)
    assert found == first_flip_by_hand(curve)


@CASES
@given(
    runs=st.lists(st.tuples(st.integers(1, 90), st.floats(0.01, 9)), min_size=2, max_size=9),
    room=st.sampled_from([1, 20, 300]),
    policy=st.sampled_from(POLICIES),
)
def test_what_is_found_is_a_flip_and_none_too_long_to_be_passed_was(runs, room, policy):
    """Runs of margins above and below 0 in turns. No interval is cleared that is longer than `steep` and `growth` say,
    so no run of flips as long as that can lie before the answer."""
    lengths, sizes = [length for length, _ in runs], [size * (-1) ** i for i, (_, size) in enumerate(runs)]
    curve = np.repeat(sizes, lengths)
    assume(len(curve) > 1)
    (found,), (probes,) = search(policy, [curve], room)
    first = first_flip_by_hand(curve)
    assert found == CENSORED or (found >= first > 0 and curve[found] < 0 <= curve[found - 1])
    starts = np.cumsum([0, *lengths])
    for start, length, size in zip(starts.tolist(), lengths, sizes):
        if size < 0 and length >= max(policy.steep, policy.growth * start):
            assert found != CENSORED and found <= start
            break
    if room == 1:  # what was forgotten may be asked for again, but not for ever
        assert probes <= 8 * len(curve)
    assert search(Exhaustive(), [curve], room)[0][0] == first


@CASES
@given(above=pieces, below=pieces, cleared=st.floats(0, 1), seen=st.lists(st.floats(0, 1), max_size=4))
def test_a_search_that_is_resumed_finds_the_same(above, below, cleared, seen):
    curve = np.concatenate([joined(above), -joined(below)])
    last, first = len(curve) - 1, first_flip_by_hand(curve)
    begin = int(cleared * (first - 1))
    steps = sorted({begin + 1 + int(share * (last - begin - 1)) for share in seen})
    measured = [(k, float(curve[k]), bool(curve[k] < 0)) for k in steps]
    policy = Isolate().finer(0.25)
    assert policy == dataclasses.replace(Isolate(), spread=0.25)
    state = policy.resume(begin, float(curve[begin]), 0.0, last, measured)
    while len(state.undecided):
        row, step = policy.ask(state, 1)
        margin = curve[np.minimum(step, last)]
        state = policy.tell(state, Measured(row, step, margin, margin < 0))
    assert state.first_flip[0] == first


# -- the filter ------------------------------------------------------------------------------------------------------


def network_of(kind: str, seed: int, dtype: torch.dtype) -> nn.Module:
    """Of 2 x 3 x 3 inputs. A linear one's margin bends only downwards, so that any search must find its first flip."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        hidden = [nn.Linear(18, 12), nn.ReLU(), nn.Linear(12, 4)] if kind == "bent" else [nn.Linear(18, 4)]
        return nn.Sequential(nn.Flatten(), *hidden).to(dtype).eval()


STOPS = {"dropped": af.Stop.DROPPED, "empty": af.Stop.WOULD_BE_EMPTY, "censored": af.Stop.CENSORED}


@settings(max_examples=settings().max_examples // 3 + 1, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(["linear", "bent"]),
    seed=st.integers(0, 2**20),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    channels=st.sampled_from([1, 2]),
    levels=st.integers(1, 7),
    step=st.sampled_from([0.125, 0.25, 0.3]),
    last=st.integers(4, 50),
    min_drop=st.sampled_from([0.0, 0.25, 1.0]),
)
def test_the_filter_is_algorithm_2(kind, seed, dtype, channels, levels, step, last, min_drop):
    model = network_of(kind, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 2, 3, 3, generator=generator).to(dtype)
    maps = (torch.randint(0, levels + 1, (2, channels, 3, 3), generator=generator) / (levels + 1)).to(dtype)
    for one in maps:  # something to filter, and a contrast
        one[0, 0, :2] = torch.tensor([levels, 0]).to(dtype) / (levels + 1)
    grid = {"step": step, "max_epsilon": step * last}
    searches = ["exhaustive", "isolate", "fast"] if kind == "linear" else ["exhaustive"]
    literal = [literal_filter(model, x, r, min_drop=min_drop, **grid) for x, r in zip(images, maps)]
    for search_by in searches:
        result = af.filter_relevance(model, images, maps, search=search_by, min_drop=min_drop, **grid)
        for i, (best, scores, ended) in enumerate(literal):
            assert result.stopped[i] is STOPS[ended]
            assert torch.equal(result.relevance[i], best)
            kept = len(scores) - (1 if ended == "empty" else 2)
            assert result.levels_removed[i] == kept
            assert float(result.score_after[i]) == pytest.approx((scores[kept] or 0) * step, abs=1e-9)
