"""The metric, the filter, explanations, measures and experiments on a pretended GPU (see `pretended.py`): the numbers
of the CPU to the bit, nothing mixed with CPU tensors, results where they are documented to be, and few waits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import test_cuda
import test_cuda_engine
import torch
from both_devices import check, everywhere, made_on_cpu, nearly_equal, nowhere
from networks import epsilons_of, images_and_maps, small_network
from pretended import OnGPU, PretendedGPU
from tiny_networks import tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from transformers_small import VisionTransformer

import apem_fast as af
from apem_fast import ops
from apem_fast.experiment.inputs import networks
from apem_fast.experiment.report.report import write_report
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.explain import EXPLAINERS
from apem_fast.margin_curve import RayView
from apem_fast.ops import load, reference
from apem_fast.probing.prober import answered
from apem_fast.relevance import STAGES, irrelevance, shuffled
from apem_fast.running import batching, places
from apem_fast.running.undisturbed import undisturbed

LIMITS = {"max_epsilon": 256.0, "step": 1.0}


@dataclass(frozen=True)
class Classifier:
    """A network, images and maps on a device."""

    model: nn.Module
    images: Tensor
    relevance: Tensor
    colours: Tensor  # maps with channels
    attribution: Tensor


def classifier(device: str) -> Classifier:
    images, relevance = made_on_cpu(images_and_maps, 3)
    colours = made_on_cpu(images_and_maps, 3, map_channels=3, seed=1)[1]
    attribution = made_on_cpu(images_and_maps, 3, seed=2)[0]
    tensors = (tensor.to(device) for tensor in (images, relevance, colours, attribution))
    return Classifier(made_on_cpu(small_network).to(device), *tensors)


# -- operators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", test_cuda.OPERATORS)
def test_reference_definitions_run_on_a_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are the operators where no CUDA compiler was; they wait for the device no more than kernels do."""
    monkeypatch.setattr(test_cuda, "raw", reference)
    small = {key: value[..., :16, :16] if value.dim() == 4 else value for key, value in test_cuda.inputs("cpu").items()}

    def case(device: str) -> Any:
        return test_cuda.OPERATORS[name]({key: value.to(device) for key, value in small.items()})

    assert not check(case, everywhere)


@pytest.mark.skipif(not load.NATIVE or load.CUDA_KERNELS, reason="the operators have CUDA kernels, or none at all")
def test_where_no_cuda_compiler_was_the_reference_runs() -> None:
    for name in load.OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"apem_fast::{name}", "CUDA")
    load._say_that_cuda_is_missing.cache_clear()
    logits, labels = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    operator = torch.ops.apem_fast.label_margin.default
    with pytest.warns(RuntimeWarning, match="compiled without CUDA"):
        margin, predicted = operator._op_dk(torch._C.DispatchKey.CUDA, logits, labels)
    assert torch.equal(margin, operator(logits, labels)[0]) and torch.equal(predicted, logits.argmax(1))
    assert af.backend() == "cpu"


# -- the metric, the filter, the measures ------------------------------------------------------------------------


def metric(**options: Any) -> Callable[[str], Any]:
    def case(device: str) -> Any:
        c = classifier(device)
        return af.apem(c.model, c.images, c.relevance, **{**LIMITS, **options})

    return case


def of_evaluator(device: str) -> Any:
    c = classifier(device)
    evaluator = af.Evaluator(c.model, c.images, labels=c.model(c.images).argmax(1), batch_size=4, **LIMITS)
    results = evaluator.apem({"grey": c.relevance, "colours": c.colours, "inverse": irrelevance(c.relevance)})
    direction = ops.directed_relevance(c.colours, evaluator.sign_gradient)
    frames = [result.to_dataframe()["score"].to_numpy() for result in results.values()]
    return results, evaluator.minimum_epsilon(direction), frames


def normalised(device: str) -> Any:
    c = classifier(device)
    generator = torch.Generator().manual_seed(3)
    result = af.apem_norm(c.model, c.images, c.relevance, shuffles=3, generator=generator, **LIMITS)
    return result, result.score, result.to_dataframe()["score_norm"].to_numpy()


def curves(device: str) -> Any:
    c = classifier(device)
    view = RayView(c.model, c.images, c.relevance, batch_size=3)
    other = RayView(c.model, c.images, c.colours, image_of_map=torch.tensor([2, 0, 0]), batch_size=3)
    grid = torch.tensor([0.0, 20.0, 40.0])
    return view.margins(grid), other.margins(grid.to(device), grid * 2)


def measures(device: str) -> Any:
    c = classifier(device)
    labels = c.model(c.images).argmax(1)
    explainer = af.explain.Gradient()
    steps = {"steps": 7, "batch_size": 8}
    return (
        af.selectivity(c.model, c.images, c.relevance, **steps),
        af.selectivity(c.model, c.images, c.colours, labels=labels, output="logit", baseline=c.images.mean(), **steps),
        af.continuity(c.model, c.images, explainer, neighbours=2),
        af.continuity(c.model, c.images, explainer, labels=labels, neighbours=c.images[:, None] + 0.1),
        af.parameter_randomisation(c.model, c.images, explainer, apem=LIMITS),
        af.parameter_randomisation(c.model, c.images, af.explain.Random(), labels=labels, mode="independent"),
        af.data_randomisation(c.model, made_on_cpu(small_network, seed=4).to(device), c.images, explainer, apem=LIMITS),
        af.data_randomisation(c.model, lambda network: network, c.images, lambda m, x, y: torch.rand_like(x)),
    )


ON_THE_CPU: dict[str, Callable[[str], Any]] = {
    "apem": metric(),
    "apem, exhaustive": metric(search="exhaustive", max_epsilon=64.0),
    "apem, bounded": metric(bounds=(-4.2, 4.2), batch_size=2),
    "apem, screened in bfloat16": metric(precision="bfloat16"),
    "Evaluator": of_evaluator,
    "apem_norm": normalised,
    "margin curves": curves,
    "measures": measures,
}


@pytest.mark.parametrize("name", ON_THE_CPU)
def test_results_on_the_cpu(name: str) -> None:
    check(ON_THE_CPU[name], nowhere)


@pytest.mark.parametrize("options", [{}, {"levels": 3, "search": "exhaustive", "max_epsilon": 32.0}], ids=str)
def test_the_filter(options: dict[str, Any]) -> None:
    def case(device: str) -> Any:
        c = classifier(device)
        coarse = (c.relevance * 20).round() / 20  # of a few levels, so that the search is short
        result = af.filter_relevance(c.model, c.images, coarse, **{**LIMITS, **options})
        return result, result.to_dataframe()["score_after"].to_numpy()

    check(case, lambda path: path == ".0.relevance")


def test_perturbed_images_stay_on_the_device() -> None:
    def case(device: str) -> Any:
        c = classifier(device)
        epsilon = torch.tensor([3.0, 50.0, 90.0])
        view = RayView(c.model, c.images, c.relevance, bounds=(-4.2, 4.2))
        return view.perturbed(epsilon), view.perturbed(epsilon.to(device), irrelevance=True)

    check(case, everywhere)


def test_gradients_in_graphs_stay_on_the_device() -> None:
    def case(device: str) -> Any:
        images = made_on_cpu(images_and_maps, 17)[0].to(device)
        evaluator = af.Evaluator(made_on_cpu(small_network).to(device), images, **LIMITS)
        return evaluator.labels, evaluator.sign_gradient, evaluator.on(images.flip(0)).sign_gradient

    check(case, everywhere)


# -- explanations and maps ---------------------------------------------------------------------------------------

FEW = {"smooth-grad": {"samples": 3}, "rise": {"samples": 8}, "lrp": {"rule": "alpha-beta"}}


def transformer() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return VisionTransformer().eval()


OF_ATTENTION = ("attention-rollout", "attention-relevance")
AS_BATCHES_ARE = ("smooth-grad", "integrated-gradients", "rise")  # of other sizes on a GPU, which round otherwise


@pytest.mark.parametrize("name", [name for name in EXPLAINERS if name != "maps"])  # those are files, not computed
def test_explanations(name: str) -> None:
    def case(device: str) -> Any:
        c = classifier(device)
        explainer = EXPLAINERS[name](**FEW.get(name, {}))
        if name in OF_ATTENTION:
            c = dataclasses.replace(c, model=made_on_cpu(transformer).to(device))
        attribution = explainer(c.model, c.images)
        labels = torch.tensor([1, 0, 3], device=device)
        return attribution, explainer(c.model, c.images, labels), STAGES["times-image"](attribution, c.images.abs())

    # SmoothGrad runs in channels-last on a CPU only, which rounds otherwise.
    check(case, everywhere, nearly_equal if name in AS_BATCHES_ARE + OF_ATTENTION else torch.equal)


def test_other_explanations() -> None:
    from captum.attr import IntegratedGradients

    methods = (
        af.explain.from_captum(IntegratedGradients, n_steps=4),
        af.explain.from_callable(lambda model, x, y: torch.randn(x.shape, device=x.device)),
        af.explain.from_callable(lambda model, x, y: x.mean(1).cpu()),
        af.explain.GradCAM(layer="4"),
        af.explain.LRP(relative=True),
        af.explain.LRP(rule="naive", bias=False),
    )

    def case(device: str) -> Any:
        c = classifier(device)
        return [method(c.model, c.images) for method in methods] + [af.explain.LRP().explain(c.model, c.images)]

    check(case, everywhere)


def test_relevance_maps() -> None:
    def case(device: str) -> Any:
        c = classifier(device)
        maps = [stage(c.attribution, c.images.abs()) for stage in STAGES.values()]
        return maps, irrelevance(maps[0]), shuffled(maps[1], 5, 1), shuffled(maps[0][:0])

    check(case, everywhere)


# -- other libraries and experiments -----------------------------------------------------------------------------


def test_adapters() -> None:
    from apem_fast.adapters import captum, quantus

    def case(device: str) -> Any:
        c = classifier(device)
        host = [tensor.cpu().numpy() for tensor in (c.images, c.model(c.images).argmax(1), c.attribution)]
        scores = captum.apem(c.model, c.images, c.attribution, target=c.model(c.images).argmax(1), **LIMITS)
        return {"captum": scores, "quantus": quantus.Apem(**LIMITS)(c.model, *host, device=device)}

    check(case, lambda path: path == ".captum")


def test_torchmetrics() -> None:
    pytest.importorskip("torchmetrics")
    from apem_fast.adapters import torchmetrics

    def case(device: str) -> Any:
        c = classifier(device)
        metric = torchmetrics.Apem(c.model, **LIMITS).to(device)
        metric.update(c.images, c.relevance)
        return {"mean": metric.compute(), "all": metric.result()}

    check(case, lambda path: path == ".mean")


def test_a_run_and_its_report(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny)
    columns = ["epsilon_minus", "epsilon_plus", "score_norm", "continuity", "flag"]

    def case(device: str) -> Any:
        options = RunOptions(
            network="tiny",
            limit=3,
            block=2,
            max_epsilon=30,
            step=0.5,
            explainers=("gradient", "random"),
            shuffles=2,
            measures=("selectivity", "continuity"),
            selection="all",
            count=2,
            device=device,
        )
        store = evaluate(options, tmp_path / str(len(list(tmp_path.iterdir()))))
        if device == "cuda":
            write_report(store, images=1, device=device)
        return store.results()[columns].to_numpy().tolist(), store.images()["confidence"].to_numpy()

    check(case, nowhere)


# -- what the host waits for -------------------------------------------------------------------------------------


def test_a_search_waits_once_a_round() -> None:
    with PretendedGPU() as gpu:
        c = classifier("cuda")
        evaluator = af.Evaluator(c.model, c.images, search="exhaustive", batch_size=6, max_epsilon=40.0)
        rounds: list[int] = []
        gpu.waits.clear()
        evaluator.apem({"relevance": c.relevance}, progress=lambda done, total, probes: rounds.append(done))
    assert len(rounds) > 30
    assert len(rounds) <= sum(gpu.waits.values()) <= len(rounds) + 20, gpu.waits  # checks of the maps, norms, captures
    assert any(graph.replays > 10 for graph in gpu.graphs)


BOUNDS = {"bounds": ([-4.4, -5.0, -6.0], 4.2)}


@pytest.mark.parametrize("options", [{}, BOUNDS, {"record": "float32"}], ids=["", "bounds by channel", "one record"])
def test_a_batch_is_two_small_copies_and_a_replay(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the columns of its probes to its answers, single inputs too; and so in every later search, whose images and
    maps are others that lie elsewhere."""
    images, relevance = made_on_cpu(images_and_maps, 12)
    kept = {"batch_size": 8, **LIMITS, **options}
    expected = af.apem(made_on_cpu(small_network), images, relevance, **kept)
    flipped = af.apem(made_on_cpu(small_network), images.flip(0)[:7], relevance.flip(0)[:7] ** 2, **kept)
    made: list[int] = []
    real = ops.perturb_probes
    monkeypatch.setattr(ops, "perturb_probes", lambda *args: (made.append(len(args[3])), real(*args))[1])
    with PretendedGPU() as gpu:
        model = made_on_cpu(small_network).to("cuda")
        evaluator = af.Evaluator(model, images.to("cuda"), **kept)
        assert epsilons_of(evaluator.apem({"maps": relevance.to("cuda")})["maps"]) == epsilons_of(expected)
        other = evaluator.on(images.flip(0)[:7].to("cuda"))
        rays = other.rays(relevance.flip(0)[:7].to("cuda") ** 2, np.arange(7))
        captured, replays = len(gpu.graphs), replays_of(gpu)
        made.clear()
        with other.probing_exactly(rays) as prober:
            answered(prober, np.arange(8), np.full(8, 3.0))  # what is placed now stays for the whole search
            gpu.launches.clear()
            before = replays_of(gpu)
            told = answered(prober, np.tile(np.arange(14), 3)[:40], np.linspace(1, 250, 40))
            prober.flips_of_record(np.arange(3), np.full(3, 9.0))
        assert sum(gpu.launches.values()) == gpu.launches["copy_"] == 2 * (replays_of(gpu) - before)
        assert replays_of(gpu) - before == 5 + int(told.probes.sum() - 40) + 3
        assert not made and len(gpu.graphs) == captured and replays < before
        result = other.apem({"maps": relevance.flip(0)[:7].to("cuda") ** 2})["maps"]
        assert len(gpu.graphs) == captured
    assert epsilons_of(result) == epsilons_of(flipped)


def replays_of(gpu: PretendedGPU) -> int:
    return sum(graph.replays for graph in gpu.graphs)


def evaluators(device: str, **options: Any) -> tuple[af.Evaluator, dict[str, Tensor]]:
    images, relevance = made_on_cpu(images_and_maps, 9)
    kept = {"batch_size": 8, **LIMITS, **options}
    return af.Evaluator(made_on_cpu(small_network).to(device), images.to(device), **kept), {"m": relevance.to(device)}


def test_a_search_within_a_search_finds_its_own_epsilons_and_leaves_the_outer_ones() -> None:
    """Both have their images and maps copied to where the graphs read them, the outer one twice."""

    def found(device: str) -> list[Any]:
        evaluator, maps = evaluators(device)
        others = {"m": maps["m"].flip(0) ** 2}
        inner: list[Any] = []

        def progress(*_: int) -> None:
            if len(inner) < 2:
                inner.append(None)
                inner[-1] = epsilons_of(evaluator.on(evaluator.images.flip(0)).apem(others)["m"])

        return [epsilons_of(evaluator.apem(maps, progress=progress)["m"]), *inner]

    with PretendedGPU():
        actual = found("cuda")
    assert actual == found("cpu") and actual[0] != actual[1]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("largest, again", [(places.LARGEST, False), (0, True)], ids=["copied", "too much to copy"])
def test_searches_of_more_images_than_are_copied_are_captured_anew(
    largest: int, again: bool, precision: str, monkeypatch: pytest.MonkeyPatch, screened_throughout: None
) -> None:
    """But once a search, also where two memory formats take turns in it."""
    monkeypatch.setattr(places, "LARGEST", largest)
    cpu, maps = evaluators("cpu")
    expected = epsilons_of(cpu.apem(maps)["m"])
    captured = []
    with PretendedGPU() as gpu:
        evaluator, maps = evaluators("cuda", precision=precision)
        for _ in range(3):
            before = len(gpu.graphs)
            assert epsilons_of(evaluator.apem(maps)["m"]) == expected
            captured.append(len(gpu.graphs) - before)
    assert 0 < captured[0] <= 5 and captured[1] == captured[2] and (captured[1] > 0) == again


def test_only_batches_of_the_size_that_won_are_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of other sizes would each take the time of many batches."""
    monkeypatch.setattr(batching, "FIRST_SIZE", {"cpu": 8, "cuda": 4})

    def captured(settled: bool) -> set[int]:
        monkeypatch.setattr(batching.BatchTuner, "is_settled_on", lambda self, plan: settled)
        with PretendedGPU():
            evaluator, maps = evaluators("cuda", batch_size=None, search="exhaustive")
            evaluator.apem(maps)
        return {size for size, *_ in evaluator._runner._ready}

    assert not captured(False) and captured(True) >= {4}


@pytest.mark.filterwarnings("error:.*in a CUDA graph failed")
def test_rays_of_another_kind_are_captured_too() -> None:
    """The flip fraction's replace features. They were written as perturbed images once, found out, and run plainly."""

    def case(device: str) -> Any:
        c = classifier(device)
        return af.measures.flip_fraction(c.model, c.images, c.relevance, parts=30, batch_size=8)

    check(case, nowhere)


def test_no_graph_rounds_the_weights(screened_throughout: None) -> None:
    """They are rounded once, where the graphs read them, and anew when a search begins."""
    rounded = {tuple(p.shape) for layer in (4, 9) for p in made_on_cpu(small_network)[layer].parameters()}

    def roundings(graph: Any) -> int:
        casts = [args[0] for func, args, *_ in graph.steps if func is torch.ops.aten._to_copy.default]
        return sum(tuple(cast.shape) in rounded for cast in casts)

    images, relevance = made_on_cpu(images_and_maps, 12)
    options = {"batch_size": 8, "precision": "bfloat16", "record": "float32", **LIMITS}
    with PretendedGPU() as gpu:
        model = made_on_cpu(small_network).to("cuda")
        evaluator = af.Evaluator(model, images.to("cuda"), **options)
        maps = {"maps": relevance.to("cuda")}
        first = evaluator.apem(maps)["maps"]
        kept, captured = evaluator._runner._kept._copies, len(gpu.graphs)
        assert kept and all(copy.dtype == torch.bfloat16 for *_, copy in kept.values())
        assert not sum(map(roundings, gpu.graphs))
        assert epsilons_of(evaluator.apem(maps)["maps"]) == epsilons_of(first) and len(gpu.graphs) == captured
        with torch.no_grad():
            model[-1].weight.data.mul_(-0.5)
        second = evaluator.on(images.to("cuda")).apem(maps)["maps"]
    changed = made_on_cpu(small_network)
    with torch.no_grad():
        changed[-1].weight.mul_(-0.5)
    assert epsilons_of(second) == epsilons_of(af.apem(changed, images, relevance, record="float32", **LIMITS))
    assert epsilons_of(second) != epsilons_of(first)


class OutOfSight(nn.Module):
    """Its last layer's kernels are not captured, as those of a library that has a stream of its own."""

    def __init__(self, network: nn.Sequential):
        super().__init__()
        self.body, self.head = network[:-1], network[-1]

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        if features.requires_grad:
            return self.head(features)
        with _disable_current_modes():
            return OnGPU(nn.functional.linear(features.inner, self.head.weight.inner, self.head.bias.inner))


def test_a_graph_that_misses_kernels_is_found_out() -> None:
    images, relevance = images_and_maps(6)
    expected = af.apem(small_network(), images, relevance, batch_size=4, **LIMITS)
    with PretendedGPU() as gpu, pytest.warns(RuntimeWarning, match="capturing the model in a CUDA graph failed"):
        model = OutOfSight(small_network().to("cuda"))
        result = af.apem(model.eval(), images.to("cuda"), relevance.to("cuda"), batch_size=4, **LIMITS)
    assert gpu.graphs and epsilons_of(result) == epsilons_of(expected)


CUDA_ENGINE: dict[str, Callable[[], None]] = {
    "batches": lambda: test_cuda_engine.test_batches_change_nothing(5, torch.channels_last),
    "precision": lambda: test_cuda_engine.test_low_precision_changes_nothing("tf32"),
    "captures": lambda: test_cuda_engine.test_batches_are_captured_and_stay_so(),
    **{
        f"a wait {wait}": lambda wait=wait: (
            test_cuda_engine.test_a_model_that_cannot_be_captured_leaves_the_process_as_it_was(wait)
        )
        for wait in test_cuda_engine.WAITS
    },
    **{
        f"a changed {change}": lambda change=change: (
            test_cuda_engine.test_graphs_of_a_model_that_has_changed_are_captured_anew(change)
        )
        for change in test_cuda_engine.CHANGES
    },
    "dropped graphs": lambda: test_cuda_engine.test_the_graph_used_longest_ago_is_dropped(),
    "gradients": lambda: test_cuda_engine.test_gradients_side_by_side_are_those_of_the_plain_model(),
    "random state": lambda: test_cuda_engine.test_nothing_of_the_users_is_changed(),
    "shuffles": lambda: test_cuda_engine.test_shuffles_are_those_of_a_cpu(),
}


@pytest.mark.filterwarnings("error:apem")
@pytest.mark.parametrize("name", CUDA_ENGINE)
def test_what_is_tested_on_a_gpu_holds_on_a_pretended_one(name: str) -> None:
    """So that a GPU's time is not lost to mistakes that need none."""
    with PretendedGPU() as gpu:
        CUDA_ENGINE[name]()
        assert not gpu.pools_under_way and not gpu.captures_random
    assert any(graph.replays for graph in gpu.graphs)


def test_samples_do_not_wait() -> None:
    def waits(samples: int) -> int:
        with PretendedGPU() as gpu:
            c = classifier("cuda")
            gpu.waits.clear(), gpu.uploads.clear()
            af.explain.SmoothGrad(samples=samples, batch_size=2)(c.model, c.images)
        return sum(gpu.waits.values()) + sum(gpu.uploads.values())

    assert waits(2) == waits(12)


def test_batches_of_selectivity_do_not_wait() -> None:
    def waits(steps: int) -> int:
        with PretendedGPU() as gpu:
            c = classifier("cuda")
            gpu.waits.clear()
            af.selectivity(c.model, c.images, c.relevance, steps=steps, batch_size=4)
        return sum(gpu.waits.values())

    assert waits(5) == waits(50)


def test_single_images_run_beside_the_batches() -> None:
    """On a stream of high priority, and in memory that no batch's graph uses at the same time."""
    with PretendedGPU() as gpu:
        images, relevance = (tensor.to("cuda") for tensor in made_on_cpu(images_and_maps, 20))
        model = made_on_cpu(small_network).to("cuda")
        evaluator = af.Evaluator(model, images, batch_size=8, max_epsilon=40.0, record="float32")
        del gpu.graphs[:]
        evaluator.apem({"relevance": relevance})
        alone = [graph for graph in gpu.graphs if graph.priorities == {-1}]
        batches = [graph for graph in gpu.graphs if graph.priorities == {0}]
    assert alone and batches and len(alone) + len(batches) == len(gpu.graphs)
    assert not {graph.pool for graph in alone} & {graph.pool for graph in batches}
    assert not {graph.stream for graph in alone} & {graph.stream for graph in batches}


def test_graphs_that_take_turns_share_a_stream_and_a_pool() -> None:
    with PretendedGPU() as gpu:
        images, relevance = (tensor.to("cuda") for tensor in made_on_cpu(images_and_maps, 20))
        model = made_on_cpu(small_network).to("cuda")
        evaluator = af.Evaluator(model, images, batch_size=8, precision="bfloat16", max_epsilon=40.0)
        del gpu.graphs[:]
        evaluator.apem({"relevance": relevance})
    batches = [graph for graph in gpu.graphs if graph.priorities == {0}]
    assert len(batches) > 1
    assert len({graph.stream for graph in batches}) == len({graph.pool for graph in batches}) == 1


# -- random numbers ----------------------------------------------------------------------------------------------


def test_no_random_state_is_changed() -> None:
    """Not even that of a GPU that has no part in it, which `torch.manual_seed` would change."""
    with PretendedGPU() as gpu:
        c = classifier("cuda")

        def states() -> list[list[int]]:
            return [state.tolist() for state in (torch.get_rng_state(), *(g.get_state() for g in gpu.generators))]

        def drawn(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
            return torch.rand_like(x)

        before = states()
        af.apem_norm(c.model, c.images, c.relevance, shuffles=2, max_epsilon=16.0)
        af.explain.SmoothGrad(samples=2)(c.model, c.images)
        af.parameter_randomisation(c.model, c.images, drawn)
        af.data_randomisation(c.model, lambda network: network, c.images, drawn)
        with undisturbed(nn.Identity(), c.images):  # without a parameter that would name the device
            torch.cuda.default_generators[0].manual_seed(5)
        assert states() == before
