"""Relevance maps, their stages, irrelevance and shuffles against NumPy written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apem_fast import relevance


@pytest.fixture
def attribution() -> torch.Tensor:
    return torch.randn(3, 3, 8, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.rand(3, 3, 8, 6, generator=torch.Generator().manual_seed(1))


def rescaled(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


@pytest.mark.parametrize("stage", relevance.STAGES.values(), ids=lambda stage: stage.name)
def test_stages_are_those_of_the_papers(stage, attribution, pixels):
    came = stage(attribution, pixels)
    for values, photograph, relevance_ in zip(attribution.numpy(), pixels.numpy(), came.numpy()):
        clipped = np.minimum(np.abs(values), np.percentile(np.abs(values), 99))
        red, green, blue = photograph
        expected = {
            "3-channel": clipped,
            "1-channel": clipped.sum(0, keepdims=True),
            "times-grey": clipped.sum(0, keepdims=True) * (0.299 * red + 0.587 * green + 0.114 * blue),
            "times-image": (clipped * photograph).sum(0, keepdims=True),
        }[stage.name]
        np.testing.assert_allclose(relevance_, rescaled(expected), rtol=1e-5, atol=1e-6)
        assert relevance_.min() == 0 and relevance_.max() == 1


def test_stage_order_and_scale_invariance(attribution, pixels):
    assert list(relevance.STAGES) == ["3-channel", "1-channel", "times-grey", "times-image"]
    assert relevance.USUAL_STAGES == ("3-channel", "1-channel", "times-image")
    one = pixels[:, :1]
    assert relevance.greyscale(one) is one
    for stage in relevance.STAGES.values():
        torch.testing.assert_close(stage(attribution * -1000, pixels), stage(attribution, pixels))


def test_maps_without_a_channel_axis(attribution):
    torch.testing.assert_close(relevance.relevance_map(attribution[:, 0]), relevance.relevance_map(attribution[:, :1]))


def test_a_map_without_contrast():
    assert (relevance.relevance_map(torch.full((1, 3, 4, 4), 7.0)) == 0.5).all()
    assert (relevance.relevance_map(torch.zeros(1, 3, 4, 4)) == 0).all()


@pytest.mark.parametrize("images", [None, torch.full((3, 3, 8, 6), 0.5)], ids=["map", "times image"])
def test_a_sparse_map_is_not_clipped_away_without_a_word(images: torch.Tensor | None) -> None:
    sparse = torch.zeros(3, 3, 8, 6)
    sparse[0] = torch.rand(3, 8, 6)
    sparse[1, 0, 2, 3] = -4.0  # 1 of 144 values; the third map is 0 before the clip, and no warning is about it
    with pytest.warns(UserWarning, match=r"percentile=99 .* index 1 .* 0\.0069 .*percentile=None.*emptied: 1 of 3\)"):
        clipped = relevance.relevance_map(sparse, images)
    assert not clipped[1].any()
    whole = relevance.relevance_map(sparse, images, percentile=None)
    assert whole[1].sum() == 1
    assert whole[1, 0, 2, 3] == 1


def test_irrelevance(attribution):
    map_ = relevance.relevance_map(attribution)
    assert torch.equal(relevance.irrelevance(map_), 1 - map_)


@pytest.mark.parametrize("channels", ["sum", "keep"])
def test_shuffles_keep_the_values_and_depend_on_nothing_else(channels, attribution):
    maps = relevance.relevance_map(attribution, channels=channels)
    kept, state = maps.clone(), torch.get_rng_state()
    came = relevance.shuffled(maps, seed=2, shuffle=1)
    assert torch.equal(maps, kept) and torch.equal(torch.get_rng_state(), state)
    assert came.shape == maps.shape and not torch.equal(came, maps)
    assert torch.equal(came.flatten(1).sort().values, maps.flatten(1).sort().values)
    assert torch.equal(torch.cat([relevance.shuffled(map_[None], 2, 1) for map_ in maps]), came)
    for other in (relevance.shuffled(maps, 2, 2), relevance.shuffled(maps, 3, 1)):
        assert not torch.equal(other, came)
    assert relevance.shuffled(maps[:0]).shape == maps[:0].shape


def test_a_shuffle_has_no_preferred_place():
    map_ = torch.zeros(1, 1, 4, 4)
    map_[0, 0, 0, 0] = 1
    mean = torch.stack([relevance.shuffled(map_, shuffle=shuffle) for shuffle in range(800)]).mean(0)
    assert (mean - 1 / 16).abs().max() < 0.04


X = torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        ((X.numpy(),), TypeError, "attribution must be a tensor"),
        ((X.long(),), TypeError, "attribution must be a floating-point tensor"),
        ((X[0, 0],), ValueError, r"attribution must have shape \(N, C, H, W\)"),
        ((X * float("nan"),), ValueError, "attribution must be finite"),
        ((X, X * float("inf")), ValueError, "images must be finite"),
        ((X, X[:1]), ValueError, "images must match attribution"),
        ((X, X.int()), TypeError, "images must be a floating-point tensor"),
        ((X, None, 101.0), ValueError, r"percentile must lie in \[0, 100\]"),
        ((X, None, 99.0, "mean"), ValueError, 'channels must be "sum" or "keep"'),
    ],
)
def test_bad_input_gets_one_sentence(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        relevance.relevance_map(*arguments)
    assert str(caught.value).startswith("relevance_map: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("channels", ["sum", "keep"])
def test_it_compiles_into_one_graph(channels: str, generator: torch.Generator) -> None:
    attribution, images = torch.randn((2, 3, 5, 4), generator=generator), torch.rand((2, 3, 5, 4), generator=generator)
    torch._dynamo.reset()
    compiled = torch.compile(relevance.relevance_map, fullgraph=True, backend="aot_eager")
    assert torch.equal(
        compiled(attribution, images, 90.0, channels), relevance.relevance_map(attribution, images, 90.0, channels)
    )
    assert torch.equal(compiled(attribution[:, 0]), relevance.relevance_map(attribution[:, 0]))
    attribution[0, 0, 0, 0] = torch.inf
    assert compiled(attribution)[0].isnan().all() and compiled(attribution)[1].isfinite().all()
    attribution[0, 0, 0, 0] = torch.nan
    assert compiled(attribution)[0].isnan().all()
