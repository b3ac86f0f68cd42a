"""Attacks against P3's algorithms spelled out one pair at a time; independence of the batch; bad input."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from rankers import PIXELS, small_pairs, small_ranker
from torch import Tensor

from apem_fast.siamese import ScoreRanker, Verifier, attack, mid_point_attack, one_step_attack, recycle
from apem_fast.siamese.networks import Ranker

STEP = 3.0  # large enough for the rankings of these networks to move


def algorithm_1(ranker: Ranker, a: Tensor, b: Tensor, target: float, iterations: int, step: float) -> Tensor:
    """P3 Algorithm 1 for one pair, its plus sign read as a descent."""
    e1, e2 = ranker.embed(a).detach(), ranker.embed(b).detach()
    for _ in range(iterations):
        e1 = e1.detach().requires_grad_()
        c = ranker.rank_embeddings(e1, e2)
        loss = (c - target) ** 2
        (d,) = torch.autograd.grad(loss.sum(), e1)
        e1 = e1.detach() - step * d
    return e1


def tv_norm(e: Tensor) -> Tensor:
    """P3 equation 24 with its sums, for one image."""
    total = torch.zeros((), dtype=e.dtype)
    for c in range(e.shape[0]):
        for i in range(e.shape[1] - 1):
            for j in range(e.shape[2] - 1):
                total = total + (e[c, i, j] - e[c, i + 1, j]).abs() + (e[c, i, j] - e[c, i, j + 1]).abs()
    return total


def algorithm_3(
    ranker: Ranker,
    a: Tensor,
    b: Tensor,
    target: float,
    iterations: int,
    step: float,
    *,
    damping: float = 0.0,
    tv: float = 0.0,
    diff: float = 0.0,
    region: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
) -> tuple[Tensor, list[float]]:
    """P3 Algorithm 3 (Algorithm 2 with its defaults) for one pair (1, C, H, W), with the rankings on the way."""
    a_m, d_p, rankings = a.clone(), torch.zeros_like(a), []
    for _ in range(iterations):
        a_m = a_m.detach().requires_grad_()
        c = ranker.rank(a_m, b)
        rankings.append(float(c.detach()))
        loss = ((c - target) ** 2).sum()
        if tv:
            loss = loss + tv * tv_norm((a_m - a)[0])
        if diff:
            loss = loss + diff * ((a_m - a) ** 2).mean()
        (d,) = torch.autograd.grad(loss, a_m)
        moved = a_m.detach() - (step * d + d_p)
        if bounds is not None:
            moved = moved.clamp(*bounds)
        a_m = moved if region is None else torch.where(region, moved, a_m.detach())
        d_p = d * damping
    rankings.append(float(ranker.rank(a_m, b).detach()))
    return a_m, rankings


REGION = torch.zeros(PIXELS, PIXELS, dtype=torch.bool)
REGION[2:7, 3:9] = True

ADVANCED: dict[str, dict[str, Any]] = {
    "plain": {},
    "damped": {"damping": 0.7},
    "in a region": {"region": REGION, "damping": 0.4},
    "bounded": {"bounds": (0.0, 1.0)},
    "smooth": {"tv": 1e-3},
    "near": {"diff": 0.3},
    "all of it": {"region": REGION, "damping": 0.4, "bounds": (0.0, 1.0), "tv": 1e-3, "diff": 0.3},
}
FORCES = {"tv": "tv_force", "diff": "diff_force"}


@pytest.mark.parametrize("case", ADVANCED)
@pytest.mark.parametrize("channels", [1, 3])
def test_attacks_are_algorithms_2_and_3(case: str, channels: int) -> None:
    ranker, (first, second) = small_ranker(channels=channels), small_pairs(3, channels=channels)
    options = ADVANCED[case]
    result = attack(
        ranker, first, second, 0.1, steps=6, step_size=STEP, **{FORCES.get(k, k): v for k, v in options.items()}
    )
    for i in range(3):
        expected, rankings = algorithm_3(ranker, first[i : i + 1], second[i : i + 1], 0.1, 6, STEP, **options)
        torch.testing.assert_close(result.perturbed[i], expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(result.score[i], torch.tensor(rankings, dtype=torch.float64), rtol=0, atol=1e-12)
    assert (result.steps_taken == 6).all()
    expected_distance = (result.perturbed - first).flatten(1).norm(dim=1)
    torch.testing.assert_close(result.distance, expected_distance)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_in_embedding_space_an_attack_is_algorithm_1(target: float) -> None:
    ranker, (first, second) = small_ranker(), small_pairs(3)
    result = attack(ranker, first, second, target, steps=5, step_size=STEP, space="embedding", perceptions_at=(0, 5))
    assert result.total_variation is None
    for i in range(3):
        expected = algorithm_1(ranker, first[i : i + 1], second[i : i + 1], target, 5, STEP)
        torch.testing.assert_close(result.perturbed[i], expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(result.perceptions[i, 1], ranker.reconstruct(expected)[0], rtol=0, atol=1e-12)
        seen = ranker.reconstruct(ranker.embed(first[i : i + 1]))[0]
        torch.testing.assert_close(result.perceptions[i, 0], seen, rtol=0, atol=1e-12)


def test_the_terms_of_equation_25_are_reported() -> None:
    ranker, (first, second) = small_ranker(channels=3), small_pairs(2, channels=3)
    result = attack(ranker, first, second, 0.0, steps=3, step_size=STEP, region=REGION)
    for i in range(2):
        e = result.perturbed[i] - first[i]
        assert float(result.total_variation[i]) == pytest.approx(float(tv_norm(e)), abs=1e-12)
        assert int(result.changed_pixels[i]) == int((e != 0).any(dim=0).sum()) <= int(REGION.sum())
        assert float(result.mean_squared[i]) == pytest.approx(float((e**2).mean()), abs=1e-15)


@pytest.mark.parametrize("space, step_size", [("input", 60.0), ("embedding", 10.0)])
def test_mid_point_attacks_arrive_and_stop(space: str, step_size: float) -> None:
    ranker, (first, second) = small_ranker(), small_pairs(8)
    before = ranker.rank(first, second)
    # A step that goes far beyond the target would swing around it for ever.
    result = mid_point_attack(ranker, first, second, steps=400, step_size=step_size, space=space, precision=1e-7)
    assert result.reached.all()
    assert ((result.score_after - 0.5).abs() <= 1e-7).all()
    embed = ranker.embed if space == "input" else lambda embedding: embedding
    again = ranker.rank_embeddings(embed(result.perturbed), ranker.embed(second))
    torch.testing.assert_close(again, result.score_after, rtol=0, atol=1e-12)
    side = (result.score[:, :-1] - 0.5).sign() * (before[:, None] - 0.5).sign()
    assert (side[result.score[:, :-1].sub(0.5).abs() > 1e-7] > 0).all(), "no score on the far side"


def test_without_stopping_a_coarse_step_oscillates() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(8)
    result = attack(ranker, first, second, 0.5, steps=60, step_size=60.0)
    assert not result.reached.all()


def test_every_pair_stops_by_itself_and_no_pair_sees_another() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(7)
    options = {"steps": 60, "step_size": 10.0, "damping": 0.2, "perceptions_at": (0, 20, 60), "precision": 1e-3}
    whole = mid_point_attack(ranker, first, second, **options)
    assert len(set(whole.steps_taken.tolist())) > 1, "the pairs should stop at different steps"
    for batch_size in (1, 3, 7):
        parts = mid_point_attack(ranker, first, second, batch_size=batch_size, **options)
        for name in ("perturbed", "score", "distance", "perceptions", "total_variation"):
            torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)
        assert torch.equal(parts.steps_taken, whole.steps_taken)
    order = torch.tensor([4, 0, 6])
    some = mid_point_attack(ranker, first[order], second[order], **options)
    torch.testing.assert_close(some.perturbed, whole.perturbed[order], rtol=0, atol=1e-12)
    # A pair that has stopped keeps its last score, and shows what it stopped at.
    for i, taken in enumerate(whole.steps_taken.tolist()):
        assert (whole.score[i, taken:] == whole.score[i, -1]).all()
        seen = ranker.reconstruct(ranker.embed(whole.perturbed[i : i + 1]))[0]
        torch.testing.assert_close(whole.perceptions[i, 2], seen, rtol=0, atol=1e-12)


def test_targets_and_regions_of_each_pair() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(4)
    target = torch.tensor([0.0, 1.0, 0.3, 0.6])
    region = torch.stack([REGION, ~REGION, REGION.T, REGION])[:, None]
    result = attack(ranker, first, second, target, steps=5, step_size=STEP, region=region, batch_size=3)
    for i in range(4):
        alone = attack(
            ranker, first[i : i + 1], second[i : i + 1], float(target[i]), steps=5, step_size=STEP, region=region[i, 0]
        )
        torch.testing.assert_close(result.perturbed[i], alone.perturbed[0], rtol=0, atol=1e-12)
        assert torch.equal(result.perturbed[i][~region[i]], first[i][~region[i]])


def test_a_proximal_zero_force_is_sparser_at_equal_score_and_the_count_alone_does_nothing() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(6)
    options = {"steps": 400, "step_size": 10.0, "precision": 1e-6}
    dense = mid_point_attack(ranker, first, second, **options)
    as_in_the_thesis = mid_point_attack(ranker, first, second, zero_force=1e-4, zero_surrogate="none", **options)
    assert torch.equal(as_in_the_thesis.perturbed, dense.perturbed)
    sparse = mid_point_attack(ranker, first, second, zero_force=1e-4, **options)
    both = sparse.reached & dense.reached
    assert both.sum() >= 3
    torch.testing.assert_close(sparse.score_after[both], dense.score_after[both], rtol=0, atol=2e-6)
    assert (sparse.changed_pixels[both] < 0.7 * dense.changed_pixels[both]).all()
    overwhelming = mid_point_attack(ranker, first, second, zero_force=1e3, **options)
    assert torch.equal(overwhelming.perturbed, first)


def test_one_step_attacks_travel_as_far_in_the_first_gradients_direction() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(4)
    many = attack(ranker, first, second, 0.0, steps=10, step_size=STEP)
    one = one_step_attack(ranker, first, second, 0.0, distance=many.distance)
    torch.testing.assert_close(one.distance, many.distance)
    for i in range(4):
        point = first[i : i + 1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(ranker.rank(point, second[i : i + 1]).sum(), point)
        expected = first[i] - many.distance[i] * gradient[0] / gradient.norm()
        torch.testing.assert_close(one.perturbed[i], expected, rtol=0, atol=1e-12)


def test_a_one_step_attack_finds_its_length() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(5)
    target = ranker.rank(first, second).detach() + 0.01
    one = one_step_attack(ranker, first, second, target, precision=1e-8)
    assert one.reached.all()
    torch.testing.assert_close(ranker.rank(one.perturbed, second).detach(), target, rtol=0, atol=2e-8)
    stopped = one_step_attack(ranker, first, second, 0.0, max_distance=0.5)
    assert not stopped.reached.any()
    torch.testing.assert_close(stopped.distance, torch.full((5,), 0.5).double())


def test_recycling_is_algorithm_4() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(3)
    perturbed = attack(ranker, first, second, 0.0, steps=5, step_size=STEP).perturbed
    again = recycle(ranker, first, second, perturbed)
    for i in range(3):
        a, b, a_e = first[i : i + 1], second[i : i + 1], perturbed[i : i + 1]
        h_1, h_2 = ranker.reconstruct(ranker.embed(a)), ranker.reconstruct(ranker.embed(a_e))
        d = h_2 - h_1
        torch.testing.assert_close(again.difference[i], d[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(again.score_recycled[i], ranker.rank(a + d, b)[0], rtol=0, atol=1e-12)
        h_3 = ranker.reconstruct(ranker.embed(a + d))
        torch.testing.assert_close(again.perception_recycled[i], h_3[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_users_is_changed(fails: bool) -> None:
    ranker, (first, second) = small_ranker(), small_pairs(3)
    state, inputs = copy.deepcopy(ranker.state_dict()), (first.clone(), second.clone())
    marker = torch.ones_like(next(ranker.parameters()))
    next(ranker.parameters()).grad = marker.clone()
    calls = []
    hook = ranker.branch.register_forward_hook(lambda *_: calls.append(1))
    if fails:

        def fail(*_: object) -> None:
            if len(calls) > 3:
                raise ArithmeticError("the network fails in the middle")

        limit = ranker.tail.register_forward_hook(fail)
        with pytest.raises(ArithmeticError):
            mid_point_attack(ranker, first, second, steps=9, step_size=0.01)
        limit.remove()
    else:
        random = torch.get_rng_state()
        mid_point_attack(ranker, first, second, steps=9, step_size=STEP)
        assert torch.equal(torch.get_rng_state(), random)
    hook.remove()
    assert calls
    assert all(torch.equal(value, state[name]) for name, value in ranker.state_dict().items())
    assert torch.equal(next(ranker.parameters()).grad, marker)
    assert all(p.grad is None for p in list(ranker.parameters())[1:])
    assert not any(module.training for module in ranker.modules())
    assert torch.equal(first, inputs[0]) and torch.equal(second, inputs[1])
    assert not first.requires_grad and not ranker.branch._forward_hooks


def test_attacks_work_under_no_grad_and_inference_mode() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(2)
    expected = attack(ranker, first, second, 0.0, steps=3, step_size=STEP).perturbed
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(attack(ranker, first, second, 0.0, steps=3, step_size=STEP).perturbed, expected)


def test_out_of_memory_halves_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    ranker, (first, second) = small_ranker(), small_pairs(5)
    expected = attack(ranker, first, second, 0.0, steps=3, step_size=STEP)
    embed, sizes = ranker.embed, []

    def with_little_memory(images: Tensor) -> Tensor:
        sizes.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("not enough memory")
        return embed(images)

    monkeypatch.setattr(ranker, "embed", with_little_memory)
    result = attack(ranker, first, second, 0.0, steps=3, step_size=STEP)
    torch.testing.assert_close(result.perturbed, expected.perturbed, rtol=0, atol=1e-12)
    assert max(sizes) == 5 and sizes[-1] == 1


class Brightness(torch.nn.Module):
    """A number between 0 and 10 for an image, smooth in its pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * images.mean(dim=(1, 2, 3), keepdim=False)[:, None]


def test_any_network_that_predicts_a_number_ranks() -> None:
    ranker, (first, second) = ScoreRanker(Brightness(), 0, 10).eval(), small_pairs(4)
    expected = (10 * first.mean(dim=(1, 2, 3)) - 10 * second.mean(dim=(1, 2, 3))) / 20 + 0.5
    torch.testing.assert_close(ranker.rank(first, second), expected)
    result = mid_point_attack(ranker, first, second, steps=300, step_size=40.0, precision=1e-9)
    assert result.reached.all()
    torch.testing.assert_close(result.perturbed.mean(dim=(1, 2, 3)), second.mean(dim=(1, 2, 3)), rtol=0, atol=1e-7)
    # Beyond its range the ranking stays at the end of [0, 1], and an attack still finds its way back.
    bright = ScoreRanker(Brightness(), 0, 1).eval()
    assert float(bright.rank(3 + first, second).max()) == 1.0
    assert mid_point_attack(bright, 3 + first, second, steps=500, step_size=2.0, precision=1e-6).reached.all()


def _call(**changes: Any) -> Any:
    ranker, (first, second) = small_ranker(), small_pairs(2)
    arguments = {"ranker": ranker, "first": first, "second": second, "target": 0.5, "steps": 2, "step_size": 1.0}
    return attack(**(arguments | changes))


BAD = [
    ({"target": 1.2}, "target must lie in [0, 1] (got min=1.2, max=1.2)"),
    ({"target": torch.tensor([0.1, float("nan")])}, "target must lie in [0, 1] (got min=nan, max=nan)"),
    ({"target": torch.zeros(3)}, "target must be one number or (2,) (got shape (3,))"),
    (
        {"region": torch.ones(4, 4, dtype=torch.bool)},
        "region must be a bool mask of shape (12, 12) or (N or 1, C or 1, 12, 12) (got torch.bool (4, 4))",
    ),
    (
        {"region": torch.ones(12, 12)},
        "region must be a bool mask of shape (12, 12) or (N or 1, C or 1, 12, 12) (got torch.float32 (12, 12))",
    ),
    (
        {"second": torch.zeros(2, 3, 12, 12).double()},
        "second must be as many images as first, of its channels, dtype and device, (2, 1, H, W) torch.float64 cpu "
        "(got (2, 3, 12, 12) torch.float64 cpu)",
    ),
    (
        {"first": torch.zeros(12, 12)},
        "first must be floating images of shape (N, C, H, W) (got torch.float32 (12, 12))",
    ),
    ({"first": torch.full((2, 1, 12, 12), float("nan")).double()}, "first must be finite (got NaN or infinity)"),
    ({"steps": -1}, "steps must be an integer of at least 0 (got -1)"),
    ({"step_size": 0.0}, "step_size must be greater than 0 (got 0.0)"),
    ({"damping": -0.5}, "damping must be at least 0 (got -0.5)"),
    ({"space": "latent"}, 'space must be "input" or "embedding" (got \'latent\')'),
    ({"space": "embedding", "tv_force": 1.0}, "tv_force must be 0 in embedding space, which has no pixels (got 1.0)"),
    (
        {"space": "embedding", "region": REGION},
        "region must be None in embedding space, which has no pixels (got a mask)",
    ),
    ({"perceptions_at": (3,)}, "perceptions_at must be steps from 0 to 2 (got (3,))"),
    ({"bounds": (1.0, 0.0)}, "bounds must be (lower, upper) (got (1.0, 0.0))"),
    ({"bounds": (0.4, 0.6)}, "first must lie in bounds=(0.4, 0.6)"),
    ({"batch_size": 0}, "batch_size must be at least 1 (got 0)"),
    ({"ranker": small_ranker().train()}, "ranker must be in evaluation mode, ranker.eval() (got training mode)"),
]


@pytest.mark.parametrize("changes, message", BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input_gets_one_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"attack: {message}")):
        _call(**changes)


def test_images_of_a_size_that_the_network_cannot_take() -> None:
    images = torch.rand(2, 1, 8, 8).double()
    with pytest.raises(ValueError, match=r"attack: images must be of a size that ranker takes \(got \(1, 1, 8, 8\): "):
        _call(first=images, second=images)


def test_a_network_that_is_no_ranker() -> None:
    with pytest.raises(
        TypeError, match="attack: ranker must be a SiameseRanker or another Ranker; a network becomes one as "
    ):
        _call(ranker=torch.nn.Identity())


# -- choices that P3 leaves open ---------------------------------------------------------------------------------


def test_classical_momentum_adds_a_part_of_the_previous_change_and_the_formula_of_the_previous_gradient() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(3)
    classical = attack(ranker, first, second, 0.1, steps=5, step_size=STEP, damping=0.6, momentum="classical")
    for i in range(3):
        b, a_m, change = second[i : i + 1], first[i : i + 1], torch.zeros_like(first[i : i + 1])
        for _ in range(5):
            a_m = a_m.detach().requires_grad_()
            (d,) = torch.autograd.grad(((ranker.rank(a_m, b) - 0.1) ** 2).sum(), a_m)
            change = -STEP * d + 0.6 * change
            a_m = a_m.detach() + change
        torch.testing.assert_close(classical.perturbed[i], a_m[0], rtol=0, atol=1e-12)
    formula = attack(ranker, first, second, 0.1, steps=5, step_size=STEP, damping=0.6)
    assert (classical.distance > formula.distance).all(), "classical momentum reaches farther"


def test_the_diff_force_is_a_mean_or_a_sum_of_squares() -> None:
    ranker, (first, second) = small_ranker(channels=3), small_pairs(2, channels=3)
    options = {"steps": 4, "step_size": STEP}
    summed = attack(ranker, first, second, 0.1, diff_force=1e-3, diff_reduction="sum", **options)
    mean = attack(ranker, first, second, 0.1, diff_force=1e-3 * 3 * PIXELS**2, **options)
    torch.testing.assert_close(summed.perturbed, mean.perturbed, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tail", ["distance", "cosine"])
@pytest.mark.parametrize("far", [0.05, 0.9, 4.0, 10.0])
@pytest.mark.parametrize("step_size", ["auto", 3.0, 20.0])
def test_pairs_near_and_far_reach_the_threshold(tail: str, far: float, step_size: Any) -> None:
    class Corners(torch.nn.Module):
        """Embeds an image by the means of its quarters: a linear map of length 1 / 6."""

        def forward(self, images: Tensor) -> Tensor:
            return torch.nn.functional.avg_pool2d(images, PIXELS // 2)

    first, _ = small_pairs(2)
    # So far apart are the embeddings, in thresholds; as angles, from nearly none to nearly opposite.
    direction = torch.tensor([[1.0, -0.5], [-0.8, 0.3]]).double().repeat_interleave(6, 0).repeat_interleave(6, 1)
    second = first + far * 0.5 * direction / 1.407
    ranker = Verifier(Corners(), **({"distance": 0.5} if tail == "distance" else {"cosine": 0.9})).double().eval()
    target = 0.5
    result = attack(
        ranker, first, second, target, steps=200, step_size=step_size, stop_when_reached=True, max_distance=1e3
    )
    assert result.reached.all(), result.outcome
    assert (result.distance > 0).all()


def test_an_image_and_itself_have_no_direction_apart() -> None:
    ranker = Verifier(torch.nn.Flatten(), distance=1.0).eval()
    images = torch.rand(2, 1, 4, 4)
    assert ranker.rank(images, images).tolist() == [1.0, 1.0]
    result = attack(ranker, images, images, 0.5)
    assert result.outcome == ("no gradient",) * 2 and torch.equal(result.perturbed, images)
