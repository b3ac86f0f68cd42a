"""What no other test notices: small changes of the code survived them all (`reliability/mutants.py`)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from apem_fast.files.whole import written_whole
from apem_fast.probing.batch_prober import tuner_for
from apem_fast.running.fingerprint import Fingerprint

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
