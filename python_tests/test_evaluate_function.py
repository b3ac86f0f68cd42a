"""`af.evaluate` and `af.report`: the command with a model, images and explanations in hand."""

from __future__ import annotations

import io

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import apem_fast as af
from apem_fast.experiment.run.bar import ProgressBar
from apem_fast.experiment.run.progress import RunProgress, TimeLeft
from apem_fast.experiment.run.store import RunStore
from apem_fast.relevance import STAGES, USUAL_STAGES

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
SHORT = {"max_epsilon": 40.0, "step": 0.5}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 4, 5, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 4 * 4, 5)).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def brightness(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return images.abs().sum(1).numpy()


def test_its_epsilons_are_those_of_the_metric(model, pixels):
    images = normalised(pixels)
    undone = (images * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)).clamp(0, 1)
    rows = af.evaluate(
        model, images, {"a": af.explain.Gradient(), "b": brightness}, mean=MEAN, std=STD, per_image=True, **SHORT
    )
    assert list(rows["image"].unique()) == ["0", "1", "2", "3"] and len(rows) == 4 * 2 * 3
    attributions = {"a": af.explain.Gradient()(model, images), "b": images.abs().sum(1, keepdim=True).expand_as(images)}
    of_name = {"a": "given:title=a:method=gradient", "b": f"given:title=b:method={__name__}.brightness"}
    for name, attribution in attributions.items():
        for stage in USUAL_STAGES:
            part = rows[(rows["explainer"] == of_name[name]) & (rows["stage"] == stage)]
            expected = af.apem(model, images, STAGES[stage](attribution, undone, 99.0), **SHORT)
            assert part["epsilon_minus"].tolist() == expected.epsilon_minus.tolist()
            assert part["epsilon_plus"].tolist() == expected.epsilon_plus.tolist()
            assert part["flipped_plus"].tolist() == expected.flipped_plus.tolist()


def test_region_perturbation_draws_all_that_pixels_can_be(model, pixels):
    """Between black and white as the model receives them, which are those of the images' own normalisation."""
    images = normalised(pixels)
    rows = af.evaluate(
        model,
        images,
        ["gradient"],
        mean=MEAN,
        std=STD,
        per_image=True,
        stages=["1-channel"],
        measures=["region_perturbation"],
        **SHORT,
    )
    relevance = STAGES["1-channel"](af.explain.Gradient()(model, images), pixels, 99.0)
    low, high = (normalised(torch.full((1, 3, 1, 1), value)) for value in (0.0, 1.0))
    expected = af.measures.region_perturbation(model, images, relevance, repeats=1, low=low, high=high)
    np.testing.assert_allclose(rows["region_perturbation"], expected.area_over_curve, rtol=1e-5)


class Items(Dataset):
    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels, self.read = images, labels, 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.read += 1
        return self.images[index], int(self.labels[index])


class Dictionaries(Items):
    def __getitem__(self, index: int) -> dict[str, object]:
        image, label = super().__getitem__(index)
        return {"pixel_values": image, "labels": label}


def without_times(table: pandas.DataFrame) -> pandas.DataFrame:
    return table.drop(columns="seconds")


def test_tensors_data_sets_and_loaders_give_one_table_with_the_sets_apart(model):
    pixels = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    predicted = model(pixels).argmax(1)
    labels = torch.where(torch.arange(8) % 2 == 0, (predicted + 1) % 5, predicted)
    methods = {"mine": af.explain.Gradient()}
    table = af.evaluate(model, pixels, methods, labels=labels, stages=["1-channel"], **SHORT)
    assert dict(zip(table["set"], table["images"])) == {"correct": 4, "misclassified": 4}
    for images in (
        Items(pixels, labels),
        Dictionaries(pixels, labels),
        DataLoader(TensorDataset(pixels, labels), batch_size=3),
        iter([(pixels[:1], labels[:1]), (pixels[1:], labels[1:])]),
    ):
        other = af.evaluate(model, images, methods, stages=["1-channel"], **SHORT)
        pandas.testing.assert_frame_equal(without_times(other), without_times(table))
    numbers = af.evaluate(model, pixels.numpy(), methods, stages=["1-channel"], **SHORT)
    assert numbers["set"].unique().tolist() == ["all"]
    chosen = af.evaluate(
        model, Items(pixels, labels), methods, stages=["1-channel"], selection="misclassified", **SHORT
    )
    assert chosen["images"].tolist() == [4]


def test_a_run_in_a_folder_is_not_done_twice_nor_mixed_with_another(model, pixels, tmp_path):
    calls = []

    def counted(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return images

    folder = tmp_path / "run"
    arguments = {"output": folder, "stages": ["1-channel"], **SHORT}
    first = af.evaluate(model, pixels, {"counted": counted}, **arguments)
    assert calls == [1] * 4
    again = af.evaluate(model, pixels, {"counted": counted, "maps": pixels.mean(1)}, **arguments)
    assert calls == [1] * 4
    pandas.testing.assert_frame_equal(again[again["name"] == "counted"], first)
    assert again["name"].tolist() == ["counted", "maps"]
    assert pandas.read_csv(folder / "table.csv")["name"].tolist() == ["counted", "maps"]
    other = af.evaluate(model, pixels, {"maps": 1 - pixels.mean(1)}, **arguments)
    assert other["name"].tolist() == ["counted", "maps", "maps"]  # other maps of one title are another line
    with pytest.raises(ValueError, match=r"^evaluate: .*|.*changed since"):
        af.evaluate(model, pixels.flip(0), {"counted": counted}, **arguments)
    assert RunStore(folder).options.explainers[0].startswith("given:title=counted")


def test_the_report_shows_maps_that_exist(model, pixels, tmp_path):
    maps = {"0": pixels[0].mean(0), "2": np.asarray(pixels[2])}
    page = af.report({"<mine>": maps, "random": "random"}, model, pixels, tmp_path / "page", **SHORT)
    text = page.read_text("utf-8")
    assert "&lt;mine&gt;" in text and "<mine>" not in text
    rows = RunStore(page.parent).results()
    flags = rows[rows["explainer"].str.contains("mine") & (rows["stage"] == "1-channel")]["flag"]
    assert flags.tolist() == ["", "there is no map of this image", "", "there is no map of this image"]
    with pytest.raises(ValueError, match=r"report: maps: none could be measured \(the map is 0 throughout\)"):
        af.report({"empty": torch.zeros(4, 12, 12)}, model, pixels, tmp_path / "none", **SHORT)


def test_the_model_and_the_images_are_left_as_they_were(model, pixels):
    images = pixels.clone()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    af.evaluate(model, images, ["gradient"], stages=["3-channel"], **SHORT)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(one.requires_grad and one.grad is None for one in model.parameters())
    assert not model.training and torch.equal(images, pixels)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": 7}, "images must be a tensor"),
        ({"images": torch.rand(3, 12, 12)}, r"images must have shape \(N, C, H, W\) \(got \(3, 12, 12\)\)"),
        ({"images": torch.zeros(2, 3, 12, 12, dtype=torch.uint8)}, "images must be of floats"),
        ({"images": 3 * torch.rand(2, 3, 12, 12)}, r"pixels in \[0, 1\] once .*got mean=0, std=1"),
        ({"mean": (0.1, 0.2)}, "mean must be a number, or one for each of the 3 channels"),
        ({"labels": [1, 2]}, "labels must be 4 whole numbers"),
        ({"labels": [0, 1, 2, 5]}, r"labels must lie in 0...4.*\(got 5\)"),
        ({"names": ["a", "a", "b", "c"]}, "names must be 4 different names"),
        ({"explainers": "gradient"}, "explainers must be a dictionary"),
        ({"explainers": {"mine": torch.rand(3, 12, 12)}}, "mine must have one map for each of 4 images"),
        ({"explainers": {"mine": {"9": torch.rand(12, 12)}}}, "mine has a map of '9'"),
        ({"explainers": {"mine": 3.0}}, "mine must be a method"),
        ({"explainers": {"mine": torch.rand(4, 12, 30)}}, "the map of 0 must have the shape of what the network sees"),
        ({"stages": ["2-channel"]}, "stages"),
    ],
)
def test_a_mistake_is_one_sentence(model, pixels, changes, message):
    arguments = {"images": pixels, "explainers": ["uniform"], **SHORT} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        af.evaluate(model, **arguments)


def test_an_exception_within_an_explainer_says_where_and_keeps_the_cause(model, pixels):
    def broken(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        raise KeyError("layer9")

    with pytest.raises(ValueError, match=r"explainer mine on image 0: KeyError: 'layer9'\n.*in broken: ") as caught:
        af.evaluate(model, pixels, {"mine": broken}, **SHORT)
    assert isinstance(caught.value.__cause__, KeyError) and "apem_fast/explain" not in str(caught.value)

    class Mine(af.explain.Explainer):
        name = "Mine"

        def attribute(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no such hook")

    with pytest.raises(ValueError, match=r"explainer Mine on image 0: RuntimeError: no such hook\n.*in attribute: "):
        af.evaluate(model, pixels, [Mine()], **SHORT)


def test_a_stretched_map_is_warned_of(model, pixels):
    def wide(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
        return np.arange(1.0, 9.0).reshape(1, 2, 4)

    with pytest.warns(UserWarning, match="a map of 2 by 4 is stretched to the images' 12 by 12"):
        af.explain.from_callable(wide)(model, pixels[:1])


# -- progress --------------------------------------------------------------------------------------------------------


def test_the_first_thing_told_comes_before_any_image_is_read_and_clean_predictions_count(model, pixels):
    told: list[tuple[RunProgress, int]] = []
    items = Items(pixels, torch.zeros(4, dtype=torch.int64))
    af.evaluate(model, items, ["gradient"], progress=lambda state: told.append((state, items.read)), **SHORT)
    assert told[0][0].doing == "reading images" and told[0][1] == 0
    of_clean = next(state for state, _ in told if "sign gradients" in state.doing)
    after = next(state for state, _ in told if state.work > 0)
    assert of_clean.work == 0 and after.work == of_clean.ahead and not after.explaining
    work = [state.work for state, _ in told]
    assert work == sorted(work) and told[-1][0].work == told[-1][0].work_total


def test_the_bar_shows_from_the_beginning():
    text = io.StringIO()
    with ProgressBar(text, clock=iter(range(100)).__next__) as bar:
        assert "starting" in text.getvalue() and "0%" in text.getvalue()
        bar(RunProgress(doing="reading images"))
        bar(RunProgress(work=10, work_total=10, images=4, images_finished=4, explainer="mine"))
    assert "4 of 4 images, mine" in text.getvalue() and "100%" in text.getvalue()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_falls_within_an_explainer_and_waits_for_its_meaning():
    clock = Clock()
    left = TimeLeft(clock)

    def at(now: float, work: float, ahead: float = 0.0) -> str:
        clock.now = now
        return left.text(RunProgress(work=work, work_total=1000.0, ahead=ahead))

    assert left.text(RunProgress()) == "-:-- left"  # what there is to do is not known
    assert at(100, 0) == "-:-- left"  # the clock of the work begins here
    assert at(101, 500) == "-:-- left"  # too early
    clock.now, left = 0.0, TimeLeft(clock)
    assert at(0, 0) == "-:-- left"
    assert at(10, 19) == "-:-- left"  # less than a fiftieth
    assert at(20, 200) == "1:20 left"  # 10 a second, 800 to do
    assert at(23, 200, ahead=100) == "1:17 left"  # a slow explainer is at work: it does not climb
    assert at(30, 200, ahead=100) == "1:10 left"
    assert at(60, 200, ahead=100) == "1:10 left"  # nor does it promise more than the step has
    assert at(60, 300) == "2:20 left"  # what came is slower: 5 a second, 700 to do
    assert at(100, 1000) == "0:00 left"


def test_the_progress_calls_a_method_as_the_program_does(model, pixels):
    told: list[RunProgress] = []
    af.evaluate(model, pixels, {"my gradient": af.explain.Gradient()}, progress=told.append, **SHORT)
    assert {state.explainer for state in told} == {"", "my gradient"}
    assert any(state.finished.startswith("my gradient: 4 images at 3 stages") for state in told)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), ((0.0, -0.1, -0.2), (1.0, 1.1, 1.2))])
def test_a_run_keeps_its_probes_within_the_bounds(model, pixels, bounds):
    """Its epsilons are the metric's with these bounds, and those are others than without."""
    rows = af.evaluate(
        model, pixels, ["gradient"], stages=["1-channel"], bounds=bounds, per_image=True, max_epsilon=200.0, step=0.5
    )
    relevance = STAGES["1-channel"](af.explain.Gradient()(model, pixels), pixels, 99.0)
    bounded, free = (
        af.apem(model, pixels, relevance, max_epsilon=200.0, step=0.5, **options)
        for options in ({"bounds": bounds}, {})
    )
    for name in ("epsilon_minus", "epsilon_plus", "flipped_minus", "flipped_plus"):
        assert rows[name].tolist() == getattr(bounded, name).tolist()
    assert bounded != free


def test_a_finished_run_says_so_in_one_line_and_computes_nothing(model, pixels, tmp_path):
    told: list[RunProgress] = []

    def again(methods: list[str]) -> list[str]:
        told.clear()
        af.evaluate(model, pixels, methods, output=tmp_path / "run", progress=told.append, **SHORT)
        return [state.finished for state in told if state.finished]

    assert len(again(["uniform"])) == 1 and "finished already" not in told[-1].finished
    assert again(["uniform"]) == [
        f"{tmp_path / 'run'} was finished already (4 images, 1 explanation): nothing is computed again"
    ]
    assert not any(state.explainer or state.probes for state in told)
    assert "finished already" not in " ".join(again(["uniform", "random"]))  # one more to do
