"""SmoothGrad's noise: the same numbers whoever draws them and wherever, and on a GPU the next batch's in time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from both_devices import made_on_cpu
from networks import images_and_maps, small_network
from pretended import PretendedGPU
from torch import Tensor, nn

from apem_fast import explain
from apem_fast.explain import noise
from apem_fast.running.repeated import require_repeatable_once


class Listening(nn.Module):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.given = made_on_cpu(small_network), []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x.detach().cpu().contiguous())
        return self.network(x)


def given(device: str, dtype: torch.dtype, **options: Any) -> Tensor:
    """The noisy images that a model is given."""
    model = Listening().to(device, dtype).eval()
    images = made_on_cpu(images_and_maps, 3, dtype=dtype)[0].to(device)
    require_repeatable_once(model, images)  # the first call does that, too
    model.given.clear()
    explain.SmoothGrad(samples=5, batch_size=2, **options)(model, images, torch.zeros(3, dtype=torch.int64).to(device))
    return torch.cat(model.given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("relative", [False, True])
def test_threads_draw_the_numbers_of_the_definition(relative: bool, dtype: torch.dtype) -> None:
    method, images = explain.SmoothGrad(relative=relative), made_on_cpu(images_and_maps, 3, dtype=dtype)[0]
    expected = torch.stack([one + method.noise(one, sample).to(dtype) for one in images for sample in range(5)])
    assert torch.equal(given("cpu", dtype, relative=relative), expected)
    with PretendedGPU():
        assert torch.equal(given("cuda", dtype, relative=relative), expected)
    with PretendedGPU(), torch.device("cuda"):
        assert torch.equal(given("cuda", dtype, relative=relative), expected)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_batch_is_under_way_beyond_the_one_that_is_used(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the next image too."""
    happened: list[str] = []
    real = noise.Drawing._begun
    monkeypatch.setattr(noise.Drawing, "_begun", lambda *args: (happened.append("begun"), real(*args))[1])
    monkeypatch.setattr(Listening, "forward", lambda self, x: (happened.append("used"), self.network(x))[1])
    with PretendedGPU():
        model = Listening().to(device).eval()
        images, labels = made_on_cpu(images_and_maps, 2)[0].to(device), torch.zeros(2, dtype=torch.int64).to(device)
        require_repeatable_once(model, images)
        happened.clear()
        explain.SmoothGrad(samples=4, batch_size=2)(model, images, labels)
    assert happened == ["begun", "begun", "used", "begun", "used", "begun", "used", "used"]


def test_a_default_type_draws_no_other_numbers() -> None:
    images = images_and_maps(1)[0]
    expected = explain.SmoothGrad().noise(images[0], 3)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(explain.SmoothGrad().noise(images[0], 3), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_thread_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the model fails in the middle."""
    pools: list[Any] = []
    real = noise.ThreadPoolExecutor
    monkeypatch.setattr(noise, "ThreadPoolExecutor", lambda *args: (pools.append(real(*args)), pools[-1])[1])
    monkeypatch.setattr(Listening, "forward", lambda self, x: x.sum(dim=(1, 2)) if len(x) == 2 else 1 / 0)
    with PretendedGPU(), pytest.raises(ZeroDivisionError):
        images, labels = images_and_maps(1)[0].to("cuda"), torch.zeros(1, dtype=torch.int64).to("cuda")
        explain.SmoothGrad(samples=3, batch_size=2)(Listening().to("cuda").eval(), images, labels)
    assert pools and all(not thread.is_alive() for pool in pools for thread in pool._threads)
