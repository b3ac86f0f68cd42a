"""What torch may make of float32 products is the user's setting, in two ways at once; inside it is true float32."""

from __future__ import annotations

import pytest
import torch
from networks import epsilons_of, images_and_maps, small_network
from torch import nn

import apem_fast as af
from apem_fast.running import layouts
from apem_fast.running.layouts import WeightLayouts
from apem_fast.running.undisturbed import PRODUCTS, products_in, undisturbed

backends = torch.backends

SETTINGS = {
    "nothing": lambda: None,
    "matmul high": lambda: torch.set_float32_matmul_precision("high"),
    "matmul medium": lambda: torch.set_float32_matmul_precision("medium"),
    "cudnn.allow_tf32": lambda: setattr(backends.cudnn, "allow_tf32", False),
    "cuda.matmul.allow_tf32": lambda: setattr(backends.cuda.matmul, "allow_tf32", True),
    "everything tf32": lambda: setattr(backends, "fp32_precision", "tf32"),
    "everything ieee": lambda: setattr(backends, "fp32_precision", "ieee"),
    "cuda.matmul tf32": lambda: setattr(backends.cuda.matmul, "fp32_precision", "tf32"),
    "cudnn.conv ieee": lambda: setattr(backends.cudnn.conv, "fp32_precision", "ieee"),
    "mkldnn bf16": lambda: setattr(backends.mkldnn, "fp32_precision", "bf16"),
    "mkldnn.matmul bf16": lambda: setattr(backends.mkldnn.matmul, "fp32_precision", "bf16"),
}


def reads() -> list[object]:
    """Every setting as it reads; an older one that contradicts a newer one raises."""
    settings: list[object] = [place.fp32_precision for place in (*PRODUCTS, backends, backends.cudnn, backends.mkldnn)]
    for older in (
        torch.get_float32_matmul_precision,
        lambda: backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
    ):
        try:
            settings.append(older())
        except RuntimeError:
            settings.append("contradicts")
    return [*settings, backends.cudnn.benchmark, backends.cudnn.deterministic]


@pytest.fixture(params=SETTINGS)
def setting(request):
    before = reads()
    SETTINGS[request.param]()
    yield request.param
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    backends.fp32_precision = "none"  # and with it what lies below
    for place, value in zip(PRODUCTS, before):
        place.fp32_precision = value
    assert reads() == before


def test_all_is_as_it_was(setting):
    before = reads()
    model = small_network()
    with undisturbed(model):
        assert {place.fp32_precision for place in PRODUCTS} == {"ieee"}
        inside = reads()
        assert inside[-2:] == [False, True]
        with products_in("tf32"):
            assert {place.fp32_precision for place in PRODUCTS} == {"tf32"}
        assert reads() == inside
    assert reads() == before
    with pytest.raises(KeyboardInterrupt), undisturbed(model):
        raise KeyboardInterrupt
    assert reads() == before


def test_a_model_may_read_the_older_settings_unless_they_contradicted():
    with products_in("ieee"):
        assert torch.get_float32_matmul_precision() == "highest" and not backends.cudnn.allow_tf32


def test_autocast_around_the_call_changes_no_epsilon():
    model = small_network()
    images, relevance = images_and_maps(3)
    options = {"step": 0.25, "max_epsilon": 40.0}
    with torch.autocast("cpu", torch.bfloat16):
        result = af.apem(model, images, relevance, **options)
        assert torch.is_autocast_enabled("cpu")
    assert epsilons_of(result) == epsilons_of(af.apem(model, images, relevance, **options))


def test_no_setting_changes_an_epsilon(setting):
    """On processors with bfloat16 products, "medium" changes logits in the third digit."""
    model = small_network()
    images, relevance = images_and_maps(3)
    result = af.apem(model, images, relevance, step=0.25, max_epsilon=40.0)
    with products_in("ieee"):
        alone = [af.apem(model, images[n : n + 1], relevance[n : n + 1], step=0.25, max_epsilon=40.0) for n in range(3)]
    assert epsilons_of(result) == [epsilons_of(one)[0] for one in alone]


def test_two_layouts_of_one_model_may_end_in_any_order():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    own = [parameter.data_ptr() for parameter in model.parameters()]
    for order in ((0, 1), (1, 0)):
        both = WeightLayouts(model), WeightLayouts(model)
        for one in both:
            one.begin()
            one.use(torch.channels_last)
        assert [parameter.data_ptr() for parameter in model.parameters()] != own
        for number in order:
            both[number].end()
        assert [parameter.data_ptr() for parameter in model.parameters()] == own
        assert both[0].begin()  # the copies are still those of the same weights
        both[0].end()
    assert not layouts._TAKEN
