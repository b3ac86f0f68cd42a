"""Saliency pictures, perceptions, validation, sanity checks, the page and the commands of siamese/."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy
import pytest
import scipy.stats
import torch
from rankers import PIXELS, small_pairs, small_ranker, stripes
from typer.testing import CliRunner

from apem_fast import similarity
from apem_fast.cli import siamese as commands
from apem_fast.ops import saliency_map
from apem_fast.siamese import attack, checkpoints, sanity
from apem_fast.siamese import comparisons as validation
from apem_fast.siamese.networks import Ranker, SiameseRanker
from apem_fast.siamese.pairs import RankedImages
from apem_fast.siamese.perception import interpolate_perceptions, perceive
from apem_fast.siamese.report.explanations import choose_pairs
from apem_fast.siamese.saliency import superimpose, superpixel_maximum, superpixels, tessellate


def test_superimposition_is_equation_30() -> None:
    images, saliency = torch.rand(2, 3, 4, 5), torch.rand(2, 1, 4, 5)
    for flavour, of_saliency, of_image, empty in (("green on red", 1, 0, 2), ("red on blue", 0, 2, 1)):
        colours = superimpose(images, saliency, flavour)
        torch.testing.assert_close(colours[:, of_saliency], saliency[:, 0])
        torch.testing.assert_close(colours[:, of_image], (images[:, 0] + images[:, 1] + images[:, 2]) / 3)
        assert (colours[:, empty] == 0).all()
    with pytest.raises(ValueError, match="superimpose: flavour must be one of green on red, red on blue"):
        superimpose(images, saliency, "blue on green")
    with pytest.raises(ValueError, match=r"superimpose: saliency must have shape \(2, 1, 4, 5\)"):
        superimpose(images, saliency[:1])


def test_tessellation_takes_the_maximum_of_each_super_pixel() -> None:
    images, saliency = torch.rand(2, 3, 24, 24), torch.rand(2, 1, 24, 24)
    labels = superpixels(images, 12)
    assert labels.shape == (2, 24, 24)
    for label, values, maxima in zip(labels, saliency, superpixel_maximum(labels, saliency), strict=True):
        assert label.unique().tolist() == list(range(len(maxima)))
        for region, maximum in enumerate(maxima):
            assert float(maximum) == float(values[0][label == region].max())
    tiles = tessellate(images, saliency, 12, opacity=1.0)
    assert tiles.shape == (2, 3, 24, 24) and float(tiles.min()) >= 0 and float(tiles.max()) <= 1
    assert len(tiles[0].flatten(1).T.unique(dim=0)) <= len(superpixel_maximum(labels, saliency)[0])


def test_interpolation_runs_from_one_perception_to_the_other() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(2)
    between = interpolate_perceptions(ranker, first, second, 5)
    torch.testing.assert_close(between[:, 0], perceive(ranker, first))
    torch.testing.assert_close(between[:, -1], perceive(ranker, second))
    middle = ranker.reconstruct((ranker.embed(first) + ranker.embed(second)) / 2).detach()
    torch.testing.assert_close(between[:, 2], middle)


def test_angles_and_rank_correlations() -> None:
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1e-9], [1.0, 0.0]], dtype=torch.float64)
    v = torch.tensor([[0.0, 2.0], [-3.0, 0.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    turned = validation.angle(u, v)
    assert turned[:2].tolist() == pytest.approx([90, 180])
    assert float(turned[2]) == pytest.approx(math.degrees(1e-9), rel=1e-6)
    assert turned[3].isnan()
    x, y = torch.rand(3, 1, 6, 6), torch.rand(3, 1, 6, 6).round(decimals=1)  # with ties
    y[2] = 0.5
    correlation = similarity.rank_correlation(x, y)
    for i in range(2):
        assert float(correlation[i]) == pytest.approx(scipy.stats.spearmanr(x[i].flatten(), y[i].flatten()).statistic)
    assert correlation[2].isnan()


def test_comparisons_measure_what_they_say() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(3)
    compared = validation.compare_one_and_many_steps(ranker, first, second, 0.0, steps=5, step_size=1.0)
    torch.testing.assert_close(compared.first.distance, compared.second.distance)
    e = [(r.perturbed - first).flatten(1).numpy() for r in (compared.first, compared.second)]
    for i in range(3):
        cosine = e[0][i] @ e[1][i] / numpy.linalg.norm(e[0][i]) / numpy.linalg.norm(e[1][i])
        assert float(compared.angle[i]) == pytest.approx(math.degrees(math.acos(min(cosine, 1))), abs=1e-4)
    middle = validation.compare_mid_point_and_boundary(ranker, first, second, steps=60, step_size=10.0)
    assert middle.first.target.tolist() == [0.5] * 3 and set(middle.second.target.tolist()) <= {0.0, 1.0}


def test_the_share_of_sensitive_inputs() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(2)
    assert validation.mid_point_sensitivity(ranker, first, second).double().mean() == 1
    with torch.no_grad():
        ranker.branch[-1].weight[:, :, 3:] = 0  # blind to the lower half, but for what the first layer brings down
    sensitive = validation.mid_point_sensitivity(ranker, first, second)
    assert sensitive[:, :, :5].all() and not sensitive[:, :, 7:].any()


def test_inputs_without_a_gradient_are_tried_at_other_values() -> None:
    class Gate(Ranker):
        """Only the first pixel counts, and the second where it exceeds 0.6: flat below."""

        def embed(self, images: torch.Tensor) -> torch.Tensor:
            flat = images.flatten(1)
            return flat[:, :1] + torch.relu(flat[:, 1:2] - 0.6)

        def rank_embeddings(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return ((first - second)[:, 0] / 4 + 0.5).clamp(0, 1)

    images = torch.full((1, 1, 2, 3), 0.25)
    sensitive = validation.mid_point_sensitivity(Gate().eval(), images, images).flatten().tolist()
    irrelevant = validation.irrelevant_inputs(Gate().eval(), images, images, batch_size=7).flatten().tolist()
    assert sensitive == [True, False, False, False, False, False]
    assert irrelevant == [False, False, True, True, True, True], "the second could change the ranking after all"


def test_the_four_attacks_of_section_5_3_6() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(3)
    kinds = validation.compare_kinds(ranker, first, second, steps=40)
    maps = {name: saliency_map(first, perturbed) for name, perturbed in kinds.items()}
    # "The explanation map for the point m' will be the same as the map for point s": both lie on the first gradient.
    one = [kinds[f"{end}, one step"] - first for end in ("mid-point", "boundary")]
    torch.testing.assert_close(validation.angle(*one), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(maps["mid-point, one step"], maps["boundary, one step"], atol=1e-6, rtol=0)
    many, far = (
        float(validation.angle(kinds[f"{end}, many steps"] - first, one[0]).max()) for end in ("mid-point", "boundary")
    )
    assert 0 < many < far, "the path bends as it goes"


def test_masking_measures_each_region() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(2)
    labels = (torch.arange(PIXELS)[:, None] // 4 * 3 + torch.arange(PIXELS)[None, :] // 4).expand(2, -1, -1)
    importance = validation.masking_importance(ranker, first, second, labels, fill=0.25, batch_size=4)
    for i in range(2):
        for region in range(9):
            masked = first[i : i + 1].clone()
            masked[0, :, labels[i] == region] = 0.25
            expected = (ranker.rank(masked, second[i : i + 1]) - ranker.rank(first[i : i + 1], second[i : i + 1])).abs()
            assert float(importance[i][region]) == pytest.approx(float(expected.detach()), abs=1e-12)


def _explain(ranker, first, second):
    return {"attack": saliency_map(first, attack(ranker, first, second, 0.0, steps=3, step_size=1.0).perturbed)}


def test_cascading_randomisation_goes_up_from_the_deepest_layer() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(3)
    before, seen = copy.deepcopy(ranker.state_dict()), []

    def explain(randomised, a, b):
        changed = [
            n for n, v in randomised.state_dict().items() if v.is_floating_point() and not torch.equal(v, before[n])
        ]
        seen.append({name.rsplit(".", 1)[0] for name in changed})
        return _explain(randomised, a, b)

    random = torch.get_rng_state()
    check = sanity.cascading_randomisation(ranker, first, second, explain, layers="branch")
    assert check.stages == ("Conv2d 3", "BatchNorm2d 1", "Conv2d 0"), "P3's: from the deepest layer that embeds"
    assert seen[0] == set() and seen[1] == {"branch.3"} and seen[3] >= {"branch.3", "branch.0"}
    assert all("tail" not in name and "decoder" not in name for stage in seen for name in stage)
    seen.clear()
    check = sanity.cascading_randomisation(ranker, first, second, explain)
    assert check.stages[:2] == ("Linear tail.layers.2", "Linear tail.layers.0") and len(check.stages) == 5
    assert seen[1] == {"tail.layers.2"} and seen[5] >= {"tail.layers.2", "tail.layers.0", "branch.3", "branch.0"}
    assert all("decoder" not in name for stage in seen for name in stage)
    assert all(torch.equal(v, before[n]) for n, v in ranker.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert check.correlation["attack"].shape == (5, 3)
    with pytest.raises(ValueError, match='layers must be "all" or "branch"'):
        sanity.cascading_randomisation(ranker, first, second, explain, layers="some")


def test_the_verdict_follows_its_criterion() -> None:
    def check(*stages: list[float]) -> sanity.SanityCheck:
        return sanity.SanityCheck(tuple("abc"[: len(stages)]), {"attack": torch.tensor(stages).double()})

    at_last, throughout = check([0.3, 0.2], [0.1, -0.1]), check([0.1, 0.1], [0.1, -0.3])
    assert not at_last.passes("attack"), "P3: no significant correlation even at the first step"
    assert at_last.verdict("attack").startswith("The attack map fails: mean rank correlation 0.25 after a, 0.00 with")
    assert throughout.passes("attack")
    assert throughout.verdict("attack").startswith("The attack map passes: mean rank correlations of at most 0.10")
    assert check([0.1271, 0.1271]).passes("attack", 0.1272) and not check([0.1271, 0.1271]).passes("attack")
    constant = check([math.nan, math.nan])
    assert not constant.passes("attack") and "constant for every pair" in constant.verdict("attack")
    ranker, pair = small_ranker(), small_pairs(3)
    same = sanity.label_randomisation(ranker, copy.deepcopy(ranker), *pair, _explain)
    torch.testing.assert_close(same.correlation["attack"], torch.ones(1, 3).double())
    assert not same.passes("attack")


def test_the_commands_make_their_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, run = tmp_path / "ranker.pt", CliRunner()
    trained = run.invoke(commands.app, ["train", "--ranker", str(path), "--steps", "3", "--size", "4"])
    assert trained.exit_code == 0, trained.output
    assert "mean deviation" in trained.output and checkpoints.load_ranker(path)[1]["steps"] == 3
    monkeypatch.setattr(commands, "STEPS", 3)
    for command, extra in (("explain", ["--pairs", "2", "--no-faces"]), ("check", ["--pairs", "2"])):
        done = run.invoke(commands.app, [command, "--ranker", str(path), *extra])
        assert done.exit_code == 0, done.output
        page = (tmp_path / f"{command}.html").read_text(encoding="utf-8")
        assert "<h1>" in page and "http" not in page.replace("http://www.w3.org", "").replace(
            "http://purl.org", ""
        ).replace("http://creativecommons.org", "").replace("https://matplotlib.org", "")
        assert json.loads((tmp_path / f"{command}.json").read_text(encoding="utf-8"))


def test_a_mistake_at_the_command_line_is_one_sentence(tmp_path: Path) -> None:
    for arguments, sentence in (
        (["explain", "--ranker", str(tmp_path / "none.pt")], "--ranker must be a trained ranker"),
        (["train", "--images", "utkface"], "--folder must be given for utkface"),
    ):
        done = CliRunner().invoke(commands.app, arguments)
        assert done.exit_code == 2 and sentence in done.output
        assert "Traceback" not in done.output


@pytest.mark.parametrize(
    "values, came",
    [([4.0] * 5, "got 5 images, all of width 4"), ([4.0], "got one image")],
    ids=["equal attributes", "one image"],
)
def test_pairs_that_do_not_differ_are_said_to_be_impossible(values: list[float], came: str) -> None:
    data = RankedImages(torch.rand(len(values), 1, 4, 4), torch.tensor(values), 0, 9, "width")
    with pytest.raises(ValueError, match="the images held out must differ in width") as error:
        choose_pairs(data, 4, 0)
    assert came in str(error.value)
    rare = RankedImages(torch.rand(50, 1, 4, 4), torch.tensor([4.0] * 49 + [5.0]), 0, 9, "width")
    first, second = choose_pairs(rare, 4, 0)
    assert (rare.values[first] - rare.values[second]).tolist() == [1, -1, 1, -1]


def test_super_pixels_follow_lightness_and_colour_as_cielab_measures_them() -> None:
    # Two blues that RGB tells apart as well as two greys, and CIELAB hardly does.
    grey = torch.full((1, 3, 24, 24), 0.5)
    grey[:, :, :, 11:] = 0.65
    labels = superpixels(grey, 16, compactness=1.0)[0]
    assert not set(labels[:, :11].unique().tolist()) & set(labels[:, 11:].unique().tolist())
    torch.testing.assert_close(superpixels(grey[:, :1], 16, compactness=1.0)[0], labels)


def test_a_ranker_without_facts_is_said_to_know_nothing(tmp_path: Path) -> None:
    path = tmp_path / "ranker.pt"
    checkpoints.save_ranker(path, SiameseRanker.for_mnist(3), "mnist", 3)
    done = CliRunner().invoke(commands.app, ["explain", "--ranker", str(path)])
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and "--ranker must be one that apem-fast siamese train made" in said
    assert "without images, regime, steps, seed, learnt" in said and "Traceback" not in said


def test_a_folder_of_faces_trains_and_says_what_it_skipped(tmp_path: Path) -> None:
    from PIL import Image

    folder, path = tmp_path / "faces", tmp_path / "ranker.pt"
    folder.mkdir()
    for age in range(4):
        Image.new("RGB", (20, 20), (50 * age, 100, 50)).save(folder / f"{20 * age}_0_0_2017.jpg")
    (folder / "mother_at_forty.jpg").write_text("no age in the name")
    options = ["--images", "utkface", "--folder", str(folder), "--ranker", str(path), "--steps", "1", "--size", "2"]
    done = CliRunner().invoke(commands.app, ["train", *options])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "skipped 1 files without a readable name or image: mother_at_forty.jpg" in said
    assert checkpoints.load_ranker(path)[1]["architecture"] == "utkface"


def test_a_pretrained_age_network_ranks_two_real_faces() -> None:
    pytest.importorskip("onnx2pytorch")
    pytest.importorskip("dlib")
    from apem_fast.siamese import faces, mid_point_attack

    try:
        ranker = faces.face_age_ranker()
    except ValueError as error:
        pytest.skip(str(error))
    pair = torch.stack([faces.sample_face(name) for name in faces.SAMPLE_FACES])
    ages = ranker.embed(pair)[:, 0]
    assert ages[0] < ages[1], "the astronaut is the younger one"
    result = mid_point_attack(ranker, pair, pair.flip(0), steps=30, step_size=10.0, precision=0.01)
    assert result.reached.any()


def test_digits_rankers_of_the_tables_are_attackable() -> None:
    ranker = SiameseRanker.for_mnist(4).eval()
    images = torch.rand(2, 1, 28, 28)
    assert attack(
        ranker, images, images.flip(0), 1.0, steps=2, step_size=1.0, perceptions_at=(2,)
    ).perceptions.shape == (2, 1, 1, 28, 28)
    assert stripes().images.shape[1:] == (1, PIXELS, PIXELS)
