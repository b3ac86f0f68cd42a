"""Pairs and networks of one's own: explained in Python and at the command line; steps that find their own length."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rankers import PIXELS, small_pairs, small_ranker
from torch import Tensor, nn
from typer.testing import CliRunner

import apem_fast as af
from apem_fast.cli import siamese as commands
from apem_fast.siamese import FusionRanker, ScoreRanker, Verifier, attack, one_step_attack
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.wrapped import Swapped


class Ageing(nn.Module):
    """A number for an image of any size: smooth, and in units of years."""

    def forward(self, images: Tensor) -> Tensor:
        return 20 + 60 * torch.tanh(3 * (images.mean(dim=(1, 2, 3)) - 0.3))


def embedding_network(seed: int = 0, channels: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(channels, 6, 3, stride=2), nn.Tanh(), nn.Conv2d(6, 5, 5))


class Fused(nn.Module):
    """A logit for two images that enter one network."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.network, self.gain = embedding_network(2, 6), gain

    def forward(self, pair: Tensor) -> Tensor:
        return self.gain * self.network(pair).flatten(1).sum(dim=1)


def ageing() -> nn.Module:
    return Ageing().eval()


def embedding() -> nn.Module:
    return embedding_network().eval()


def fused() -> nn.Module:
    return Fused().eval()


def no_network() -> str:
    return "a string"


def pair(seed: int = 3) -> tuple[Tensor, Tensor]:
    first, second = small_pairs(1, seed, channels=3, dtype=torch.float32)
    return first[0], second[0]


KINDS: dict[str, Callable[[], Ranker]] = {
    "ranker": lambda: small_ranker(channels=3, dtype=torch.float32),
    "regressor": lambda: ScoreRanker(Ageing(), 0, 100).eval(),
    "distance": lambda: Verifier(embedding_network(), distance=0.05).eval(),
    "cosine": lambda: Verifier(embedding_network(), cosine=0.999).eval(),
    "fusion": lambda: FusionRanker(Fused(), (3, PIXELS, PIXELS), stacked=True, logit=True).eval(),
}


@pytest.mark.parametrize("attacked", ["first", "second"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_explained_for_every_kind_of_network(kind: str, attacked: Any) -> None:
    ranker, (a, b) = KINDS[kind](), pair()
    explained = af.siamese.explain_pair(ranker, a, b, attacked=attacked, segments=9)
    assert explained.reached
    assert explained.score_after == pytest.approx(0.5, abs=1e-4)
    images = (explained.perturbed, b) if attacked == "first" else (a, explained.perturbed)
    assert float(ranker.rank(*(image[None] for image in images))) == pytest.approx(0.5, abs=2e-4)
    assert 0 <= float(explained.perturbed.min()) <= float(explained.perturbed.max()) <= 1
    changed = a if attacked == "first" else b
    torch.testing.assert_close(explained.change, explained.perturbed - changed)
    for name, picture in explained.pictures.items():
        assert picture.shape[1:] == (PIXELS, PIXELS), name
        assert float(picture.min()) >= -1e-6, name
        assert float(picture.max()) <= 1 + 1e-6, name
    assert ("perception after" in explained.pictures) == (kind == "ranker")
    path = explained.result.path()
    assert list(path.columns) == ["pair", "step", "score", "distance"]
    assert path.score.iloc[-1] == pytest.approx(0.5, abs=1e-4)
    assert path.distance.iloc[0] == 0
    assert path.distance.iloc[-1] == pytest.approx(float(explained.change.norm()), rel=1e-5)
    assert len(explained.sentences) == 2


def test_a_regressor_is_asked_in_its_own_units() -> None:
    ranker, (a, b) = KINDS["regressor"](), pair()
    explained = af.siamese.explain_pair(ranker, a, b, value=30, attacked="second", precision=1e-6)
    assert explained.values["perturbed"] == pytest.approx(30, abs=1e-3)
    assert explained.values["first"] == pytest.approx(float(Ageing()(a[None])), abs=1e-4)
    assert "now 30." in str(explained)
    with pytest.raises(ValueError, match=r"value must lie in the regressor's range \[0, 100\] \(got 130\)"):
        af.siamese.explain_pair(ranker, a, b, value=130)
    with pytest.raises(ValueError, match="value must be given for a ScoreRanker only"):
        af.siamese.explain_pair(KINDS["distance"](), a, b, value=30)


def test_images_of_two_sizes_where_the_network_takes_them() -> None:
    ranker, (a, _) = KINDS["regressor"](), pair()
    explained = af.siamese.explain_pair(ranker, a, torch.rand(3, 20, 31), segments=4)
    assert explained.reached
    with pytest.raises(ValueError, match="images must be of a size that ranker takes"):
        af.siamese.explain_pair(KINDS["ranker"](), a, torch.rand(3, 9, 9))


def test_bounds_of_each_channel_in_the_networks_own_space() -> None:
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    scale = [torch.tensor(values)[:, None, None] for values in (mean, std)]
    ranker, (a, b) = KINDS["ranker"](), pair()
    x, y = ((image - scale[0]) / scale[1] for image in (a, b))
    limits = af.siamese.normalised_bounds(mean, std)
    low, high = (torch.tensor(limit)[:, None, None] for limit in limits)
    torch.testing.assert_close(low, -scale[0] / scale[1])
    options: dict[str, Any] = {"bounds": limits}
    region = torch.zeros(PIXELS, PIXELS, dtype=torch.bool)
    region[2:9] = True
    results = (
        attack(ranker, x[None], y[None], 1.0, steps=30, step_size=1e4, **options),
        attack(ranker, x[None], y[None], 1.0, steps=30, region=region, **options),
        one_step_attack(ranker, x[None], y[None], 1.0, distance=40.0, **options),
    )
    for result in results:
        assert (result.perturbed >= low - 1e-6).all()
        assert (result.perturbed <= high + 1e-6).all()
    assert (results[0].perturbed == low).any()
    assert torch.equal(results[1].perturbed[..., ~region], x[None][..., ~region])
    unbounded = one_step_attack(ranker, x[None], y[None], 1.0, distance=40.0)
    torch.testing.assert_close(results[2].perturbed, unbounded.perturbed.clamp(low, high))
    explained = af.siamese.explain_pair(ranker, x, y, mean=mean, std=std)
    torch.testing.assert_close(explained.pictures["first"], a)
    with pytest.raises(ValueError, match=r"images must be pixels in \[0, 1\], or mean and std say how"):
        af.siamese.explain_pair(ranker, x, y)


@pytest.mark.parametrize("gain", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("kind", ["ranker", "regressor", "distance", "cosine", "fusion"])
def test_steps_find_their_own_length_on_networks_of_any_scale(kind: str, gain: float) -> None:
    """Inputs are scaled by the gain, so gradients differ by eight orders of magnitude; paths must be the same."""

    class Scaled(Ranker):
        def __init__(self) -> None:
            super().__init__()
            self.ranker = KINDS[kind]().double()

        def embed(self, images: Tensor) -> Tensor:
            return self.ranker.embed(images / gain)

        def rank_embeddings(self, first: Tensor, second: Tensor) -> Tensor:
            return self.ranker.rank_embeddings(first, second)

    ranker, (first, second) = Scaled().eval(), small_pairs(4, channels=3)
    result = attack(ranker, first * gain, second * gain, 0.5, stop_when_reached=True)
    assert result.reached.all(), result.outcome
    plain = attack(ranker.ranker, first, second, 0.5, stop_when_reached=True)
    torch.testing.assert_close(result.perturbed / gain, plain.perturbed, rtol=0, atol=1e-6)
    assert int(plain.steps_taken.min()) >= 2


def test_a_saturated_logit_still_has_a_direction() -> None:
    ranker = FusionRanker(Fused(60.0), (3, PIXELS, PIXELS), stacked=True, logit=True).eval()
    first, second = small_pairs(6, channels=3, dtype=torch.float32)
    result = attack(ranker, first, second, 0.5, stop_when_reached=True)
    before = result.score_before
    assert ((before < 1e-6) | (before > 1 - 1e-6)).any(), "some pairs are beyond doubt in float32"
    assert result.reached.all(), result.outcome


def test_what_a_step_size_does_is_said() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(4)
    with pytest.warns(UserWarning, match=r'step_size=1e-06 is too short for 4 of 4 pairs.*step_size="auto"'):
        short = attack(ranker, first, second, 0.5, steps=5, step_size=1e-6)
    assert short.outcome == ("hardly moves",) * 4
    with pytest.warns(UserWarning, match="step_size=200 is too long for"):
        long = attack(ranker, first, second, 0.5, steps=60, step_size=200.0)
    assert "overshoots" in long.outcome
    limited = attack(ranker, first, second, 0.0, max_distance=0.05)
    assert limited.outcome == ("limit",) * 4
    assert (limited.distance < 0.5).all()
    table = limited.to_dataframe()
    assert table.outcome.tolist() == ["limit"] * 4
    assert table.distance.tolist() == pytest.approx(limited.distance.tolist())
    blind = ScoreRanker(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Threshold(9, 0.25)), 0, 1).eval()
    assert attack(blind, first + 0.3, second, 1.0).outcome == ("no gradient",) * 4
    with pytest.raises(ValueError, match='momentum must be "classical" with step_size="auto"'):
        attack(ranker, first, second, 0.5, damping=0.5)
    with pytest.raises(ValueError, match="ranker must rank in"):
        attack(
            FusionRanker(Fused(50.0), (3, PIXELS, PIXELS), stacked=True).eval(),
            *small_pairs(2, channels=3, dtype=torch.float32),
            0.5,
        )


def test_automatic_attacks_do_not_depend_on_the_batch() -> None:
    ranker, (first, second) = small_ranker(), small_pairs(5)
    whole = attack(ranker, first, second, 0.5, stop_when_reached=True)
    parts = attack(ranker, first, second, 0.5, stop_when_reached=True, batch_size=2)
    torch.testing.assert_close(parts.perturbed, whole.perturbed, rtol=0, atol=1e-12)
    assert torch.equal(parts.steps_taken, whole.steps_taken)
    swapped = attack(Swapped(ranker).eval(), second, first, 0.5, stop_when_reached=True)
    torch.testing.assert_close(swapped.score_before, whole.score_before)


# -- the command -------------------------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(commands.app, ["explain", *map(str, arguments)])
    assert "Traceback" not in done.output
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def files(tmp_path: Path) -> Path:
    from PIL import Image

    for name, image in zip("ab", pair(), strict=True):
        array = (image * 255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).resize((24, 24)).save(tmp_path / f"{name}.png")
    mask = Image.new("L", (24, 24))
    mask.save(tmp_path / "empty.png")
    mask.paste(255, (4, 4, 20, 20))
    mask.save(tmp_path / "mask.png")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "table.csv").write_text("file,age\na.png,20\nb.png,61\ntext.jpg,3\nabsent.png,4\n")
    return tmp_path


@pytest.mark.parametrize(
    "network, options",
    [
        ("ageing", ["--low", 0, "--high", 100, "--value", 45, "--region", "mask.png"]),
        ("embedding", ["--distance", 0.05, "--pixels", PIXELS, "--attack", "second"]),
        ("embedding", ["--cosine", 0.999, "--pixels", PIXELS, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]),
        ("fused", ["--fusion", "stacked", "--logit", "--pixels", PIXELS, "--bounds", "none", "--target", 0.6]),
    ],
)
def test_one_command_explains_two_files(network: str, options: list[Any], files: Path) -> None:
    options = [files / option if option == "mask.png" else option for option in options]
    output = files / "out"
    code, said = run(
        "--network",
        f"test_siamese_pair:{network}",
        "--first",
        files / "a.png",
        "--second",
        files / "b.png",
        *options,
        "--output",
        output,
    )
    assert code == 0, said
    assert "brings the ranking to" in said
    numbers = json.loads((output / "explanation.json").read_text())["Why this pair ranks as it does"]
    assert numbers["reached"] is True
    rows = list(csv.DictReader((output / "path.csv").open()))
    assert float(rows[-1]["score"]) == pytest.approx(numbers["target"], abs=1e-4)
    assert {"saliency.png", "perturbed.png", "super-pixels.png"} <= {p.name for p in output.iterdir()}
    assert "<h1>" in (output / "explanation.html").read_text()


def test_pairs_of_a_folder_with_a_table(files: Path) -> None:
    arguments = ["--network", "test_siamese_pair:ageing", "--low", 0, "--high", 100, "--pixels", 24, "--pairs", 2]
    folder = ["--folder", files, "--attributes", files / "table.csv", "--output", files / "many"]
    code, said = run(*arguments, *folder)
    assert code == 0, said
    rows = list(csv.DictReader((files / "many" / "pairs.csv").open()))
    assert [row["images"] for row in rows] == ["b.png and a.png", "a.png and b.png"]
    assert all(row["reached"] == "True" for row in rows)
    assert (files / "many" / "pair-2" / "explanation.html").exists()


MISTAKES: list[tuple[list[Any], str]] = [
    (["--first", "text.jpg"], "image: path must be an image (got"),
    (["--first", "absent.jpg"], "image: path must be a file that exists (got"),
    (["--network", "test_siamese_pair:missing"], "--network test_siamese_pair:missing cannot be imported"),
    (["--network", "test_siamese_pair:no_network"], "--network must return a torch.nn.Module or a Ranker (got str)"),
    (["--cosine", 0.5], "exactly one of these must say what --network gives"),
    (["--value", 300], "value must lie in the regressor's range"),
    (["--region", "empty.png"], "region must hold at least one pixel that may change (got an empty one)"),
    (["--step-size", "some"], "--step-size must be auto or a number (got some)"),
    (["--bounds", "wide"], "--bounds must be numbers with commas"),
    (["--mean", "0,0,0"], "--mean and --std must be given together"),
    (["--pixels", "big"], "--pixels must be a number, or HEIGHTxWIDTH (got big)"),
]


@pytest.mark.parametrize("changes, sentence", MISTAKES, ids=[sentence[:32] for _, sentence in MISTAKES])
def test_mistakes_get_one_sentence(changes: list[Any], sentence: str, files: Path) -> None:
    arguments: dict[str, Any] = {
        "--network": "test_siamese_pair:ageing",
        "--low": 0,
        "--high": 100,
        "--first": files / "a.png",
        "--second": files / "b.png",
        "--output": files / "out",
    }
    for option, value in zip(changes[::2], changes[1::2], strict=True):
        arguments[option] = files / value if str(value).endswith((".jpg", ".png")) else value
    code, said = run(*(part for option in arguments.items() for part in option))
    assert code == 2
    assert sentence in said


def test_a_network_that_does_not_take_the_images_and_a_target_out_of_reach(files: Path) -> None:
    own = ["--first", files / "a.png", "--second", files / "b.png", "--output", files / "out"]
    code, said = run("--network", "test_siamese_pair:fused", "--fusion", "two", *own)
    assert code == 2
    assert "ranker must take" in said
    code, said = run("--network", "test_siamese_pair:ageing", "--low", 0, "--high", 100, "--target", 1, *own)
    assert code == 0
    assert re.search(r"The target 1 was not reached: the ranking came from 0\.\d+ to 0\.\d+", said)
    assert 'role="alert"' in (files / "out" / "explanation.html").read_text()


def test_the_example_of_the_documentation_runs_as_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "siamese.md").read_text(encoding="utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/siamese.md", "exec"), {"__name__": "example"})
    assert (tmp_path / "pair" / "explanation.html").exists()


def test_a_verifier_of_digits_is_explained_near_and_far() -> None:
    verifier, held_out = af.siamese.examples.digits_verifier(40, progress=False)
    images, values = held_out.images, held_out.values
    one, same, other = ((values == digit).nonzero()[place, 0] for digit, place in ((3, 0), (3, 1), (0, 0)))
    alike, unlike = (verifier.rank(images[one][None], images[i][None]).item() for i in (same, other))
    assert alike > unlike
    for second in (same, other):
        explained = af.siamese.explain_pair(verifier, images[one], images[second], segments=9)
        assert explained.reached
        assert "The network takes the two for " in explained.sentences[0]
        assert "threshold 0.5" in explained.sentences[0]


# -- networks whose answers are not of the pair alone --------------------------------------------------------------


class Redness(torch.nn.Module):
    """A regressor that does something else to its input first."""

    def __init__(self, before):
        super().__init__()
        self.before = before

    def forward(self, images):
        images = self.before(images)
        return 100 * torch.sigmoid(4 * (images[:, 0] - images[:, 2]).mean(dim=(1, 2)))


NOT_ALONE = {
    "must not write into its images": lambda images: images.sub_(0.1),
    "must answer each pair by itself": lambda images: images - images.mean(dim=0, keepdim=True) / 2,
    "must answer the same pair in the same way": lambda images: torch.nn.functional.dropout(images, 0.5),
}
ATTACKS = {
    "attack": lambda ranker, a, b: af.siamese.attack(ranker, a, b, 0.5),
    "one_step_attack": lambda ranker, a, b: af.siamese.one_step_attack(ranker, a, b, 0.5),
    "explain_pair": lambda ranker, a, b: af.siamese.explain_pair(ranker, a[0], b[0]),
}


@pytest.mark.parametrize("call", ATTACKS)
@pytest.mark.parametrize("said", NOT_ALONE)
def test_a_ranker_whose_answers_are_not_of_a_pair_alone_is_refused(said, call):
    first, second = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    given = first.clone(), second.clone()
    ranker = af.siamese.ScoreRanker(Redness(NOT_ALONE[said]), low=0, high=100).eval()
    with pytest.raises(ValueError, match=rf"{call}: ranker {said}"):
        ATTACKS[call](ranker, *given)
    assert torch.equal(given[0], first) and torch.equal(given[1], second)
