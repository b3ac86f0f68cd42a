"""Results compare by value, say shortly what they are, show in notebooks and are drawn; `af.overlay`; `dir(af)`."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pkgutil
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import Tensor

import apem_fast as af
from apem_fast.filter.results import ScoreCurve
from apem_fast.margin_curve import MarginCurve
from apem_fast.measures import RandomisationResult
from apem_fast.results import Result, TableResult

NAN = float("nan")


def apem_result(**changes: object) -> af.ApemResult:
    values = {
        "epsilon_minus": torch.tensor([4.0, 12.5, 1024.0], dtype=torch.float64),
        "epsilon_plus": torch.tensor([9.0, 1024.0, 1024.0], dtype=torch.float64),
        "flipped_minus": torch.tensor([True, True, False]),
        "flipped_plus": torch.tensor([True, False, False]),
        "labels": torch.tensor([281, 967, 0]),
        "probes": torch.tensor([14, 9, 12]),
        "max_epsilon": 1024.0,
        "step": 0.5,
        "record": "float64",
    }
    return af.ApemResult(**{**values, **changes})


def score_curve(count: int = 3) -> ScoreCurve:
    whole, share = torch.arange(count), torch.linspace(0, 0.75, count, dtype=torch.float64)
    yes = torch.ones(count, dtype=torch.bool)
    return ScoreCurve(whole, 10 * whole, share, share + 1, 3 * share + 2, yes, yes)


def filter_result() -> af.FilterResult:
    one, whole = torch.tensor([1.0, NAN], dtype=torch.float64), torch.tensor([3, 4])
    stops = (af.Stop.DROPPED, af.Stop.WOULD_BE_EMPTY)
    curves = (score_curve(), score_curve(2))
    maps = torch.rand(2, 1, 8, 8)
    return af.FilterResult(
        maps, one, one, whole, whole, whole, one / 2, whole, stops, one, one, curves, whole, "float64"
    )


def randomisation() -> RandomisationResult:
    values = torch.linspace(-0.5, 1, 4, dtype=torch.float64).view(2, 2)
    return RandomisationResult(("<fc>", "layer4"), values, values, values, values, torch.tensor([1, 2]))


def every_result() -> list[Result]:
    from apem_fast.metric.normalised import ApemNormResult, ShuffledEpsilons

    plain = apem_result()
    shuffled = ShuffledEpsilons(
        plain.epsilon_minus / 2, plain.epsilon_plus, plain.flipped_minus, plain.flipped_plus, plain.probes, 10
    )
    of_one = af.EpsilonResult(plain.epsilon_minus, plain.flipped_minus, plain.labels, plain.probes, "float32")
    removed, output = torch.arange(5), torch.rand(3, 5, dtype=torch.float64)
    deletion = af.measures.DeletionResult(removed, output, plain.labels)
    insertion = af.measures.InsertionResult(removed, output.flip(1), plain.labels)
    gain = af.measures.RelevanceGainResult(deletion, insertion)
    robust = af.measures.RobustnessResult(
        torch.tensor([0.1, 0.9], dtype=torch.float64),
        *(output[:, :2], output[:, 2:4], output[:, :2] > 0, output[:, :2] > 0.5, plain.labels, plain.probes),
    )
    margins = torch.linspace(5, -1, 6, dtype=torch.float64).expand(2, 6)
    return [
        plain,
        shuffled,
        of_one,
        ApemNormResult(plain, shuffled),
        score_curve(),
        filter_result(),
        MarginCurve(margins + 5, margins, margins + 5, margins + 1),
        deletion,
        insertion,
        af.measures.SelectivityResult(removed, output, plain.labels),
        gain,
        af.measures.AdversarialCurvesResult(gain, plain.flipped_minus, plain.probes),
        af.measures.FlipFractionResult(output[:, 0], plain.flipped_minus, plain.labels, plain.probes, 200),
        af.measures.ContinuityResult(output, output + 1, plain.labels),
        af.measures.RegionPerturbationResult(output[:, None].expand(3, 4, 5), plain.labels),
        robust,
        randomisation(),
        af.explain.LrpResult(torch.rand(2, 3, 4, 4), torch.tensor([1.0, 2.0]), torch.tensor([0.1, 0.2])),
    ]


NAMES = [type(one).__name__ for one in every_result()]


# -- equality ----------------------------------------------------------------------------------------------------------


def test_every_dataclass_that_is_a_result_leaves_comparison_and_repr_to_it():
    for module in pkgutil.walk_packages(af.__path__, "apem_fast."):
        if module.name.startswith(("apem_fast.measures", "apem_fast.siamese")) and not module.ispkg:
            importlib.import_module(module.name)
    found, waiting = set(), [Result]
    while waiting:
        waiting += (below := waiting.pop().__subclasses__())
        found.update(below)
    found = {one for one in found if one.__module__.startswith("apem_fast.")}
    assert len(found) > 20
    for one in found - {TableResult}:
        assert dataclasses.is_dataclass(one), one
        assert one.__eq__ is Result.__eq__ and one.__hash__ is Result.__hash__ and one.__repr__ is Result.__repr__, one
    # Whoever answers with tensors and has a public place is a result.
    for module in (af, af.measures, af.siamese, af.explain):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) and name.endswith("Result"):
                assert issubclass(value, Result), name


@pytest.mark.parametrize("result", every_result(), ids=NAMES)
def test_a_copy_is_equal_and_has_the_same_hash(result):
    twin = copy.deepcopy(result)
    assert (result == twin) is True and (result != twin) is False and hash(result) == hash(twin)
    assert len({result, twin}) == 1 and [result].index(twin) == 0
    assert (result == 3) is False and result != "text"


@pytest.mark.parametrize("result", every_result(), ids=NAMES)
def test_another_value_in_any_tensor_is_another_result(result):
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, Tensor):
            first = value.flatten()[0]
            other = value.clone().contiguous()
            other.view(-1)[0] = ~first if value.dtype == torch.bool else first + 1
            assert result != dataclasses.replace(result, **{field.name: other}), field.name
            assert result != dataclasses.replace(result, **{field.name: value[:-1]}), field.name


def test_what_is_equal():
    result = apem_result()
    nan = torch.tensor([NAN, 1, 2], dtype=torch.float64)
    assert apem_result(epsilon_minus=nan) == apem_result(epsilon_minus=nan.clone())
    assert hash(apem_result(epsilon_minus=nan)) == hash(
        apem_result(epsilon_minus=-nan.abs()[:1].new_tensor([NAN, -1, -2]))
    )
    assert apem_result(epsilon_minus=nan) != result
    assert result != apem_result(epsilon_minus=result.epsilon_minus.float())  # of another type
    zero, minus_zero = torch.zeros(3, dtype=torch.float64), -torch.zeros(3, dtype=torch.float64)
    assert apem_result(epsilon_minus=zero) == apem_result(epsilon_minus=minus_zero)
    assert hash(apem_result(epsilon_minus=zero)) == hash(apem_result(epsilon_minus=minus_zero))
    assert result != apem_result(record="float32") and result != apem_result(step=1.0)
    assert apem_result(max_epsilon=NAN) == apem_result(max_epsilon=float("nan"))
    assert hash(apem_result(max_epsilon=NAN)) == hash(apem_result(max_epsilon=float("nan")))
    strided = result.epsilon_minus.repeat_interleave(2)[::2]
    assert not strided.is_contiguous() and hash(apem_result(epsilon_minus=strided)) == hash(result)


# -- what is said of them ----------------------------------------------------------------------------------------------


def test_the_line_of_a_result_says_what_matters():
    assert repr(apem_result()) == (
        "<ApemResult: 3 images, mean score 338.83, median 5, 3 of 6 rays censored, max_epsilon=1024, step=0.5, "
        "record=float64>"
    )
    flagged = torch.tensor([True, False, False])
    bad = apem_result(
        epsilon_minus=apem_result().epsilon_minus.masked_fill(flagged, NAN),
        epsilon_plus=apem_result().epsilon_plus.masked_fill(flagged, NAN),
    )
    assert "1 map without a ray" in repr(bad) and "3 of 4 rays censored" in repr(bad)
    empty = {f.name: v[:0] for f in dataclasses.fields(bad) if isinstance(v := getattr(bad, f.name), Tensor)}
    assert repr(apem_result(**empty)).startswith("<ApemResult: 0 images, ")


@pytest.mark.parametrize("result", every_result(), ids=NAMES)
def test_a_repr_is_one_short_line_and_no_wall_of_tensors(result):
    assert len(repr(result)) < 400 and "tensor(" not in repr(result) and "\n" not in repr(result)
    many = [dataclasses.replace(result)]
    assert len(repr(many)) < 420


class Tags(HTMLParser):
    """What an element of a page consists of; unclosed tags are an error."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self.open, text

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.mark.parametrize("result", every_result(), ids=NAMES)
def test_a_notebook_shows_a_small_table_by_itself(result):
    text = result._repr_html_()
    tags = Tags(text)
    assert len(text) < 8000 and not {"script", "style", "link", "iframe"} & set(tags.tags) and "http" not in text
    if isinstance(result, TableResult):
        table = result.to_dataframe()
        assert tags.rows[0][1:] == list(table.columns)
        assert len(tags.rows) == 1 + min(len(table), 8)


def test_the_table_in_a_notebook_is_the_data_frames():
    rows = Tags(apem_result()._repr_html_()).rows
    assert rows[0] == ["", "label", "epsilon_minus", "epsilon_plus", "score", "flipped_minus", "flipped_plus", "probes"]
    assert rows[2] == ["1", "967", "12.5", "1024", "1011.5", "yes", "no", "9"]
    many = {
        f.name: v.repeat(7)
        for f in dataclasses.fields(af.ApemResult)
        if isinstance(v := getattr(apem_result(), f.name), Tensor)
    }
    text = apem_result(**many)._repr_html_()
    assert len(Tags(text).rows) == 9 and "and 13 more" in text


def test_names_in_a_table_are_escaped():
    text = randomisation()._repr_html_()
    assert "<fc>" not in text and "&lt;fc&gt;" in text
    assert "<b>" not in dataclasses.replace(randomisation(), stages=("a", "<b>x"))._repr_html_().replace(
        "<b>Random", ""
    )


# -- figures -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pyplot(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


@pytest.mark.parametrize(
    "result", [one for one in every_result() if hasattr(one, "plot")], ids=lambda one: type(one).__name__
)
def test_a_plot_is_drawn_into_new_axes_or_into_yours(result, pyplot):
    ax = result.plot()
    assert ax.collections or ax.lines
    assert ax.get_xlabel()
    ax.figure.canvas.draw()
    _, mine = pyplot.subplots()
    count = len(pyplot.get_fignums())
    assert result.plot(mine) is mine and len(pyplot.get_fignums()) == count


def test_the_dots_of_a_plot_are_the_epsilons_and_hollow_where_censored(pyplot):
    result = apem_result()
    _, *dots, _ = result.plot().collections  # the lines between them, and what the legend shows
    assert [one.get_offsets().tolist() for one in dots] == [
        [[4, 0], [12.5, 1]],
        [[1024, 2]],
        [[9, 0]],
        [[1024, 1], [1024, 2]],
    ]
    assert [len(one.get_facecolor()) for one in dots] == [1, 0, 1, 0]
    assert [one.get_label() for one in dots[::2]] == ["ε⁻, relevance", "ε⁺, irrelevance"]


def test_many_images_are_drawn_sorted_by_their_score(pyplot):
    random = np.random.default_rng(0)
    many = {
        "epsilon_minus": torch.from_numpy(random.uniform(1, 100, 50)),
        "epsilon_plus": torch.from_numpy(random.uniform(1, 100, 50)),
        **dict.fromkeys(("flipped_minus", "flipped_plus"), torch.ones(50, dtype=torch.bool)),
        **dict.fromkeys(("labels", "probes"), torch.zeros(50, dtype=torch.int64)),
    }
    result = apem_result(**many)
    minus, plus = (one.get_offsets() for one in result.plot().collections if one.get_label().startswith("ε"))
    by_row = sorted(zip(minus[:, 1], plus[:, 0] - minus[:, 0]))
    assert [row for row, _ in by_row] == list(range(50))
    assert [score for _, score in by_row] == sorted(result.score.tolist(), reverse=True)


# -- maps over images --------------------------------------------------------------------------------------------------


def test_an_overlay_is_the_map_in_colour_over_the_grey_photograph():
    image_module = pytest.importorskip("PIL.Image")
    from matplotlib import colormaps

    pixels = torch.rand(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(2, 1, 6, 5, generator=torch.Generator().manual_seed(1))
    picture = af.overlay(maps, pixels, opacity=0.25)
    assert isinstance(picture, image_module.Image) and picture.size == (5 + 4 + 5, 6 + 4 + 6)
    shown = np.asarray(picture).astype(int)
    for number in range(2):
        top = number * 10
        assert abs(shown[top : top + 6, :5] - (pixels[number] * 255).round().permute(1, 2, 0).numpy()).max() == 0
        for y in range(6):
            for x in range(5):
                colour = np.array(colormaps["magma"](round(float(maps[number, 0, y, x]) * 255))[:3]).round(3)
                expected = 0.25 * colour + 0.75 * float(pixels[number, :, y, x].mean())
                assert abs(shown[top + y, 9 + x] / 255 - expected).max() < 0.006
    assert (shown[6:10] == 255).all() and (shown[:, 5:9] == 255).all()


def test_an_overlay_takes_maps_as_they_come():
    pixels, maps = torch.rand(2, 1, 8, 8), torch.rand(2, 3, 8, 8)
    whole = np.asarray(af.overlay(maps, pixels))
    assert (np.asarray(af.overlay(maps.mean(1), pixels)) == whole).all()
    one = np.asarray(af.overlay(maps[0].mean(0), pixels[0]))
    assert (one == whole[:8]).all()
    assert (np.asarray(af.overlay(maps[0], pixels[0])) == one).all()
    assert (np.asarray(af.overlay(maps.numpy(), pixels.numpy())) == whole).all()
    assert af.overlay(torch.rand(2, 1, 2, 2), pixels).size == (20, 20)
    two = np.asarray(af.overlay({"a": maps, "b": 1 - maps}, pixels))
    assert two.shape == (20, 32, 3) and (two[:, :20] == whole).all()
    assert (two[:, 24:] == np.asarray(af.overlay(1 - maps, pixels))[:, 12:]).all()


@pytest.mark.parametrize(
    "maps, pixels, options, words",
    [
        (
            torch.rand(3, 1, 4, 4),
            torch.rand(2, 3, 4, 4),
            {},
            "relevance must have one map for each of 2 images (got (3, 1",
        ),
        (
            2 * torch.ones(1, 1, 4, 4),
            torch.rand(1, 3, 4, 4),
            {},
            "relevance must lie in [0, 1]: relevance_map makes such",
        ),
        (torch.full((1, 1, 4, 4), NAN), torch.rand(1, 3, 4, 4), {}, "relevance must lie in [0, 1]"),
        (torch.rand(1, 1, 4, 4), 255 * torch.ones(1, 3, 4, 4), {}, "pixels must lie in [0, 1]: images as they were"),
        (torch.rand(1, 1, 4, 4), torch.rand(1, 4, 4, 4), {}, "pixels must have shape (N, 3, H, W)"),
        ([1, 2], torch.rand(1, 3, 4, 4), {}, "relevance must be a floating-point tensor (got list)"),
        (torch.rand(1, 1, 4, 4), torch.rand(1, 3, 4, 4), {"opacity": 2}, "opacity must lie in [0, 1] (got 2)"),
    ],
)
def test_a_mistake_in_an_overlay_is_one_sentence(maps, pixels, options, words):
    with pytest.raises((ValueError, TypeError), match="^overlay: " + re.escape(words)):
        af.overlay(maps, pixels, **options)


# -- the names of the package ------------------------------------------------------------------------------------------


def test_dir_has_every_name_and_no_other():
    """In a fresh process, where nothing has been used yet, and again when everything has been."""
    code = """
import apem_fast as af
first = set(dir(af))
public = {name for name in first if not name.startswith("_")}
junk = {name for name in ("annotations", "importlib", "sys", "Path", "Any", "TYPE_CHECKING") if name in first}
assert not junk, junk
assert set(af.__all__) <= first and "__version__" in first
for name in sorted(public):
    getattr(af, name)
assert {name for name in dir(af) if not name.startswith("_")} == public
for name in public - set(af.__all__):
    assert getattr(af, name).__name__ == f"apem_fast.{name}", name
"""
    subprocess.run([sys.executable, "-c", code], check=True)
