"""What no other test notices: small changes of the code survived them all (`reliability/mutants.py`)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import images_and_maps, small_network
from test_screening import LAST as LAST_STEP
from test_screening import Scripted, honest_rays
from torch import nn

import apem_fast as af
from apem_fast.experiment.inputs.selection import Selection
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore
from apem_fast.files.whole import written_whole
from apem_fast.probing import screening
from apem_fast.probing.batch_prober import tuner_for
from apem_fast.probing.columns import ProbesOf
from apem_fast.probing.engine import find_flips
from apem_fast.probing.trial import Trial
from apem_fast.running.fingerprint import Fingerprint
from apem_fast.running.segments import OnSegments
from apem_fast.search import policy_of

LAST, FIRST = torch.channels_last, torch.contiguous_format


@pytest.mark.parametrize(
    "device, low_precision, channels, expected",
    [("cpu", False, 3, LAST), ("cuda", False, 3, FIRST), ("cuda", True, 3, LAST), ("cuda", True, 1, FIRST)],
)
def test_the_likelier_memory_format_comes_first(device, low_precision, channels, expected):
    images = SimpleNamespace(device=torch.device(device), shape=(2, channels, 4, 4))
    assert tuner_for(images, None, low_precision=low_precision).best.memory_format is expected


def test_an_error_while_a_file_is_written_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError, match="half way"), written_whole(path) as part:
        part.write_text("half")
        raise RuntimeError("half way")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_parameter_in_another_storage_is_another_model():
    model = nn.Linear(2, 2)
    before = Fingerprint(model)
    assert Fingerprint(model) == before
    with torch.no_grad():
        model.weight.add_(1)  # a graph sees new values where they lie
    assert Fingerprint(model) == before
    model.weight.data = model.weight.data.clone()
    assert Fingerprint(model) != before


def test_a_sparse_buffer_is_known_by_its_version():
    model = nn.Module()
    model.register_buffer("table", torch.eye(3).to_sparse())
    before = Fingerprint(model)
    assert Fingerprint(model) == before
    model.table.mul_(2)
    assert Fingerprint(model) != before


def test_what_an_object_in_a_module_holds_is_part_of_the_model():
    model = nn.Identity()
    model.options = SimpleNamespace(scale=1.0)
    before = Fingerprint(model)
    assert Fingerprint(model) == before
    model.options.scale = 2.0
    assert Fingerprint(model) != before


def test_a_run_keeps_its_choice_of_images(tmp_path):
    store = RunStore.for_run(tmp_path / "run", RunOptions(network="tiny_networks:tiny"), {})
    assert store.selection() is None
    chosen = Selection(("a.png", "b.png"), note="fewer than asked for")
    store.write_selection(chosen)
    assert RunStore(tmp_path / "run").selection() == chosen


def test_a_run_may_begin_in_a_folder_of_a_folder_that_is_not_there_yet(tmp_path):
    folder = tmp_path / "of" / "runs" / "one"
    with RunStore.claimed(folder):
        assert folder.is_dir()
    with RunStore.claimed(folder):
        pass


def test_a_run_that_never_chose_its_images_is_forgotten_and_nothing_else(tmp_path):
    store = RunStore.for_run(tmp_path / "run", RunOptions(network="tiny_networks:tiny"), {})
    store.discard()
    assert not (tmp_path / "run").exists()
    store = RunStore.for_run(tmp_path / "run", RunOptions(network="tiny_networks:tiny"), {})
    (tmp_path / "run" / "notes.txt").write_text("mine")
    store.discard()
    store.discard()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(5), nn.BatchNorm1d(5, affine=False)], ids=["affine", "plain"])
def test_a_batch_norm_with_statistics_of_its_own_lies_within_its_bounds(layer):
    """One that is not trained has a mean and a shift of 0, which may have any sign."""
    generator = torch.Generator().manual_seed(4)
    layer = layer.double().eval().requires_grad_(False)
    for tensor, least in [(t, 0.2 if name == "running_var" else -1.0) for name, t in layer.state_dict().items()]:
        if tensor.is_floating_point():
            tensor.uniform_(least, 2.0, generator=generator)
    offset, slope = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    error = torch.rand(3, 5, generator=generator, dtype=torch.float64) / 8
    made = layer(OnSegments(offset, slope, error))
    for t in (-1.0, -0.3, 0.0, 0.6, 1.0):
        for side in (-1.0, 0.0, 1.0):
            value = layer(offset + slope * t + side * error)
            assert bool(((value - made.offset - made.slope * t).abs() <= made.error).all())
    assert float(made.error.max()) < 4 * float(error.max()) / 0.2**0.5  # bounds that say something


class _Counting(screening.ScreeningProber):
    """Counts what the screen decides alone, less what is asked in float32 when a ray is decided."""

    decided = confirmed = 0

    def answers(self, ray, epsilon):
        answers = yield from super().answers(ray, epsilon)
        self.decided += int((answers.noise > 0).sum())
        return answers

    def confirm(self, ray, epsilon):
        refuted, probes = yield from super().confirm(ray, epsilon)
        self.confirmed += int(probes.sum())
        return refuted, probes


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
def test_what_a_screen_spares_is_what_it_decides_and_nobody_asks_later(search):
    prober = Scripted(*zip(*honest_rays(40)), 1)
    with prober:
        screen = _Counting(prober, "float16", tuner_for(prober.rays.images, 8), Trial(False))
        find_flips(screen, policy_of(search), step=1.0, last_step=LAST_STEP)
    assert screen.decided > screen.confirmed > 0
    assert screen._spared == screen.decided - screen.confirmed


def test_the_filter_skips_the_levels_at_which_nothing_can_change():
    """What it predicts of them costs no answer where it is wrong, but probes."""
    probes = 0
    for seed in range(3):
        images, relevance = images_and_maps(2, seed=seed, dtype=torch.float64)
        network = small_network(seed, dtype=torch.float64)
        result = af.filter_relevance(network, images, relevance, levels=120, max_epsilon=200, step=0.05, batch_size=8)
        probes += int(np.sum(result.probes.numpy()))
    assert 120 < probes < 430


def test_a_plot_of_the_filter_shows_which_maps_were_kept():
    axes = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    images, relevance = images_and_maps(2)
    result = af.filter_relevance(small_network(), images, relevance, levels=4, max_epsilon=20.0)
    result.plot(axes)
    (kept,) = [one for one in axes.collections if one.get_label() == "kept"]
    expected = np.stack([result.removed_share.numpy(), result.score_after.numpy()], axis=1)
    np.testing.assert_array_equal(np.asarray(kept.get_offsets()), expected)


def test_a_graph_is_captured_with_probes_that_no_search_asks_for():
    """A capture may miss kernels, which would leave the right answers of a search where they are."""
    images, relevance = images_and_maps(2)
    evaluator = af.Evaluator(small_network(), images)
    rays = evaluator.rays(relevance, np.arange(2))
    epsilon = ProbesOf(rays, None).unlike_any(3)[4].view(torch.float64)
    assert epsilon.shape == (3,) and bool((epsilon < 0).all())
