"""The answer of record: epsilons that do not hang on float32's last digits, and a model that is only read."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from networks import epsilons_of, images_and_maps, small_network
from torch import nn

import apem_fast as af
from apem_fast.running import record as record_module

GRID = {"max_epsilon": 40.0, "step": 1 / 1024}  # so fine that the last digits of float32 decide between two steps


class OtherProcessor(nn.Module):
    """In float32 its logits and gradients are off by what another processor's might be; in float64 they are not."""

    def __init__(self, seed: float, off: float = 1e-6):
        super().__init__()
        self.network, self.seed, self.off = small_network(), seed, off

    def forward(self, x):
        if x.dtype == torch.float64:
            return self.network(x)
        noise = torch.sin(1e4 * self.seed * (1 + x.detach().sum(dim=(1, 2, 3))))[:, None]
        logits = self.network(x + self.off * torch.sin(1e3 * self.seed * x))
        return logits + self.off * noise * logits.detach().abs().amax(1, keepdim=True) * torch.linspace(-1, 1, 10)


def evaluators(record: str, count: int = 12) -> list[af.Evaluator]:
    images, _ = images_and_maps(count)
    return [af.Evaluator(OtherProcessor(seed).eval(), images, record=record, **GRID) for seed in (1.0, 2.0, 3.0)]


def test_epsilons_labels_and_signs_do_not_hang_on_the_processor():
    _, maps = images_and_maps(12)
    seen = {}
    for record in ("float64", "float32"):
        each = evaluators(record)
        results = [evaluator.apem({"maps": maps})["maps"] for evaluator in each]
        seen[record] = {str((epsilons_of(r), e.sign_gradient.tolist())) for e, r in zip(each, results)}
        assert {r.record for r in results} == {record}
        assert all(torch.equal(e.labels, each[0].labels) for e in each)
    assert len(seen["float64"]) == 1
    assert len(seen["float32"]) == 3  # else the noise above would show nothing


def test_a_model_that_is_further_off_in_float32_gets_a_wider_band():
    images, maps = images_and_maps(12)
    each = [af.Evaluator(OtherProcessor(seed, 1e-4).eval(), images, record="float64", **GRID) for seed in (1.0, 2.0)]
    results = [evaluator.apem({"maps": maps})["maps"] for evaluator in each]
    assert epsilons_of(results[0]) == epsilons_of(results[1])
    assert each[0]._runner.noise > 2.0**-14


@pytest.mark.parametrize("search", ["isolate", "exhaustive"])
def test_the_record_is_what_the_whole_search_in_float64_finds(search):
    images, maps = images_and_maps(6)
    grid = {"max_epsilon": 40.0, "step": 0.25, "search": search}
    result = af.apem(small_network(), images, maps, **grid)
    whole = af.apem(small_network().double(), images.double(), maps.double(), **grid)
    assert epsilons_of(result) == epsilons_of(whole)
    assert whole.record == "float64"


def test_float64_images_need_no_copy(monkeypatch):
    monkeypatch.setattr(record_module, "in_float64", None)
    images, maps = images_and_maps(2, dtype=torch.float64)
    assert af.apem(small_network(dtype=torch.float64), images, maps, max_epsilon=4.0).record == "float64"


# -- what is copied ----------------------------------------------------------------------------------------------


class Everything(nn.Module):
    """A parameter, a shared one, a buffer, a tensor that is neither, a number, a hook and a tied layer matter."""

    def __init__(self):
        super().__init__()
        self.network = small_network()
        self.register_buffer("shift", torch.full((10,), 0.25))
        self.register_buffer("count", torch.tensor(3))
        self.plain = torch.linspace(0, 1, 10)
        self.factor = 1.5
        self.tied = self.network[-1]

    def forward(self, x):
        return self.network(x) * self.factor + self.shift + self.plain * self.count

    def change(self, what: str) -> None:
        with torch.no_grad():
            if what == "parameter":
                self.network[0].weight.mul_(1.5)
            elif what == "parameter behind autograd's back":
                self.network[0].weight.data.mul_(1.5)
            elif what == "buffer":
                self.shift[3] += 2
            elif what == "tensor":
                self.plain[2] += 2
            elif what == "number":
                self.factor = 0.1
            elif what == "hook":
                self.network.register_forward_hook(lambda module, inputs, output: output.flip(1))
            else:
                self.network[4] = small_network(seed=5)[4]


@pytest.mark.parametrize(
    "what",
    ["parameter", "parameter behind autograd's back", "buffer", "tensor", "number", "hook", "layer"],
)
def test_what_changes_between_searches_is_seen(what):
    model = Everything().eval()
    images, _ = images_and_maps(3)
    evaluator = af.Evaluator(model, images, max_epsilon=4.0)
    before = evaluator.logits
    model.change(what)
    after = evaluator.on(images).logits
    assert after.dtype == torch.float64
    with torch.no_grad():
        torch.testing.assert_close(after, model(images).double(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(after, before)


def test_the_users_model_is_only_read():
    model = Everything().eval()
    model.network[0].weight.requires_grad_(False)
    images, maps = images_and_maps(2)
    before, tensors = copy.deepcopy(model.state_dict()), [*model.parameters(), *model.buffers()]
    pointers = [t.data_ptr() for t in tensors]
    wanted = [p.requires_grad for p in model.parameters()]
    af.apem(model, images, maps, max_epsilon=4.0)
    assert [id(t) for t in (*model.parameters(), *model.buffers())] == [id(t) for t in tensors]
    assert [t.data_ptr() for t in tensors] == pointers
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    assert model.plain.dtype == torch.float32


# -- models that cannot ------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """Wants float32 at its first layer."""

    def __init__(self):
        super().__init__()
        self.network = small_network()

    def forward(self, x):
        return self.network(x.float())


class Rounds(Fixed):
    """Computes in whatever it is, but not throughout."""

    def forward(self, x):
        return self.network(x.float().to(x.dtype))


class Closure(Fixed):
    """Calls a network that no copy of it reaches."""

    def __init__(self):
        super().__init__()
        del self.network
        network = small_network()
        self.call = lambda x: network(x)

    def forward(self, x):
        return self.call(x)


class Uncopyable(Fixed):
    def __deepcopy__(self, memo):
        raise TypeError("cannot copy a lock")

    def forward(self, x):
        return self.network(x)


@pytest.mark.parametrize(
    "model, why",
    [(Fixed, ""), (Rounds, "it rounds to less on the way, in "), (Closure, ""), (Uncopyable, "cannot copy a lock")],
)
def test_a_model_that_cannot_compute_in_float64_falls_back_with_one_warning(model, why):
    model = model().eval()
    images, maps = images_and_maps(3)
    sentence = (
        r'Evaluator: record="float64" is not possible with this model, so float32 decides: an epsilon may differ by .*'
    )
    with pytest.warns(RuntimeWarning, match=sentence + why) as warned:
        evaluator = af.Evaluator(model, images, max_epsilon=40.0, step=0.25)
        result = evaluator.apem({"maps": maps})["maps"]
        evaluator.on(images)
    assert len([w for w in warned if w.category is RuntimeWarning]) == 1
    assert result.record == evaluator.record == "float32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = af.Evaluator(model, images, record="float32", max_epsilon=40.0, step=0.25).apem({"maps": maps})["maps"]
    assert epsilons_of(result) == epsilons_of(plain)


def test_a_copy_that_does_not_fit_the_memory_is_said_in_one_sentence(monkeypatch):
    def full(model):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes.")

    monkeypatch.setattr(record_module, "in_float64", full)
    images, maps = images_and_maps(2)
    with pytest.warns(RuntimeWarning, match=r"\(a copy of 0 MB in float64 does not fit the memory\)"):
        result = af.apem(small_network(), images, maps, max_epsilon=4.0)
    assert result.record == "float32"


def test_what_is_wrong_in_any_type_is_said_of_the_model_and_not_of_float64():
    images, _ = images_and_maps(2, channels=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError):
            af.Evaluator(small_network(), images)
        with pytest.raises(ValueError, match="model must return logits"):
            af.Evaluator(nn.Flatten(0).eval(), images)


def test_an_unknown_record():
    images, _ = images_and_maps(1)
    with pytest.raises(ValueError, match=r"Evaluator: record must be one of float64, float32 \(got 'double'\)"):
        af.Evaluator(small_network(), images, record="double")
