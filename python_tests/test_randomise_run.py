"""The randomisation tests of a run's methods: the table, the edge detector beside them, the page's section."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from scipy import stats
from skimage.feature import hog
from test_experiment import tiny_network
from torch import nn
from typer.testing import CliRunner

import apem_fast as af
from apem_fast.cli import main as cli
from apem_fast.experiment.inputs import networks
from apem_fast.experiment.randomising import FILE, parts_from_output, randomise_run
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.inputs import inputs_of
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore
from apem_fast.relevance import STAGES
from apem_fast.similarity import gradient_histogram_correlation


@pytest.fixture(autouse=True)
def tiny(monkeypatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny_network)


def test_histograms_of_gradients_are_scikit_images():
    maps = torch.rand(2, 2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    found = gradient_histogram_correlation(*maps)
    for n in range(2):
        expected = stats.pearsonr(*(hog(maps[i, n, 0].double().numpy()) for i in range(2))).statistic
        assert float(found[n]) == pytest.approx(expected)
    assert gradient_histogram_correlation(maps[0], maps[0]).tolist() == pytest.approx([1, 1])
    assert gradient_histogram_correlation(maps[0, :, :, :8], maps[1, :, :, :8]).isnan().all()


def test_parts_hold_all_parameters_from_the_output_on():
    inner = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    network = nn.Sequential(nn.Linear(2, 2), inner, nn.Linear(2, 1))
    assert parts_from_output(network, 3) == ["2", "1", "0"]
    assert parts_from_output(network, 4) == ["2", "1.2", "1.0", "0"]
    with pytest.raises(ValueError, match="layers with parameters"):
        parts_from_output(nn.Sequential(nn.ReLU()), 3)


def test_a_run_is_randomised_and_its_page_shows_it(tmp_path):
    run = tmp_path / "run"
    evaluate(RunOptions(network="tiny", explainers=("gradient",), limit=2, max_epsilon=30, stages=("1-channel",)), run)
    came = CliRunner(env={"TERM": "dumb"}).invoke(cli.app, ["randomise", str(run), "--parts", "2"])
    assert came.exit_code == 0, came.output
    table = pandas.read_csv(run / FILE)
    assert set(table["explainer"]) == {"gradient", "edge"} and set(table["test"]) == {"cascading", "independent"}
    edges = table[table["explainer"] == "edge"]
    assert np.allclose(edges["structural_similarity"], 1) and np.allclose(edges["absolute_rank_correlation"], 1)
    store, network = RunStore(run), networks.load_network("tiny")
    _, every = inputs_of(store.options, "cpu")
    pixels = torch.stack([network.pixels(one.open()) for one in every.photographs])
    result = af.parameter_randomisation(
        network.model,
        network.normalised(pixels),
        af.explain.Gradient(),
        stages=parts_from_output(network.model, 2),
        relevance=lambda attribution: STAGES["1-channel"](attribution, pixels, 99.0),
    )
    of_gradient = table[(table["explainer"] == "gradient") & (table["test"] == "cascading")]
    np.testing.assert_allclose(of_gradient["rank_correlation"], result.rank_correlation.flatten(), rtol=1e-5)
    page = (run / "index.html").read_text("utf-8")
    section = page[page.index('id="randomisation"') :]
    assert "(cascading)" in section and "HOG" in section and "<svg" in section


def test_code_of_somebodys_own_is_not_run_unasked(tmp_path):
    run = tmp_path / "run"
    store = evaluate(RunOptions(network="tiny_networks:tiny", explainers=("random",), limit=1, max_epsilon=30), run)
    with pytest.raises(ValueError, match=r"names code of somebody's own \(tiny_networks:tiny\)"):
        randomise_run(store, images=1)
