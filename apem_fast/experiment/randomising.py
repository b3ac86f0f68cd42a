"""The randomisation tests of a run's methods: how similar their maps stay as the network is randomised (P2 2.2).

They use the first images of a run and every method of it except stored maps; an edge detector is added, which does not
depend on the network and so never changes. Parts of the network are re-initialised from the output to the input, in
addition to one another (cascading) and one at a time (independent). With weights that were trained on permuted labels,
the network with these weights is compared too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas
import torch
from torch import nn

from apem_fast.experiment.inputs.networks import imported_by_network, load_network
from apem_fast.experiment.run.inputs import inputs_of
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import explainer_from, imported_by
from apem_fast.measures import RandomisationResult, data_randomisation, parameter_randomisation
from apem_fast.relevance import STAGES

FILE = "randomisation.csv"
EDGES = "edge"
MOST_PARTS = 12


def randomise_run(
    store: RunStore,
    *,
    images: int = 8,
    parts: int = MOST_PARTS,
    permuted_weights: str | Path | None = None,
    device: str = "cpu",
    trust: bool = False,
    progress: Callable[[str], None] = lambda doing: None,
) -> pandas.DataFrame:
    """Does the tests and writes `randomisation.csv` into the run's folder, which its report then shows.

    Args:
        store: the run.
        images: how many images of the run are used, the first ones.
        parts: the greatest number of parts into which the network is divided.
        permuted_weights: of the same network, trained on permuted labels; None leaves this test out.
        device: where the network runs.
        trust: whether to run code that the run names and that is not of this package.
        progress: called with a text on the current work.

    Returns:
        A row for each test, part, method and image: the similarities of `RandomisationResult`.

    Raises:
        ValueError: the run names code of somebody's own, and `trust` is not given; or it holds no images yet.
    """
    keys = list(dict.fromkeys((*store.options.explainers, EDGES)))
    foreign = [*imported_by_network(store.options.network), *(path for key in keys for path in imported_by(key))]
    if foreign and not trust:
        raise ValueError(
            f"{store.folder} names code of somebody's own ({', '.join(foreign)}), which these tests would run; --trust "
            "runs it"
        )
    keys = [key for key in keys if not key.startswith("maps:")]  # they cannot be made again
    network, every = inputs_of(store.options, device)
    by_name = {one.name: one for one in every.photographs}
    names = [name for name in store.images()["image"].head(images) if name in by_name]
    if not names:
        raise ValueError(f"{store.folder} holds no images yet")
    pixels = torch.stack([network.pixels(by_name[name].open()) for name in names]).to(device)
    inputs = network.normalised(pixels)
    stages = parts_from_output(network.model, parts)
    other = None
    if permuted_weights is not None:
        other = load_network(store.options.network, device, str(permuted_weights)).model

    def relevance(attribution: torch.Tensor) -> torch.Tensor:
        return STAGES["1-channel"](attribution, pixels, store.options.percentile)

    tables = []
    for key in keys:
        explainer = explainer_from(key)
        progress(f"{explainer.name}: parameters, cascading")
        results = {
            "cascading": parameter_randomisation(network.model, inputs, explainer, stages=stages, relevance=relevance)
        }
        progress(f"{explainer.name}: parameters, independent")
        results["independent"] = parameter_randomisation(
            network.model, inputs, explainer, mode="independent", stages=stages, relevance=relevance
        )
        if other is not None:
            progress(f"{explainer.name}: data")
            results["data"] = data_randomisation(network.model, other, inputs, explainer, relevance=relevance)
        tables += [_rows(test, key, names, result) for test, result in results.items()]
    table = pandas.concat(tables, ignore_index=True)
    store.write_file(store.folder / FILE, table.to_csv(index=False))
    return table


def _rows(test: str, key: str, names: list[str], result: RandomisationResult) -> pandas.DataFrame:
    table = result.to_dataframe().rename(columns={"stage": "part"})
    place = {part: number for number, part in enumerate(result.stages)}
    table["image"] = table["image"].map(dict(enumerate(names)))
    return table.assign(test=test, explainer=key, place=table["part"].map(place))


def has_parameters(module: nn.Module, recurse: bool = True) -> bool:
    """Whether the module or a submodule has parameters."""
    return next(module.parameters(recurse), None) is not None


def parts_from_output(model: nn.Module, most: int) -> list[str]:
    """Names of submodules that hold all parameters, starting at the output.

    They are the network's children; the largest is replaced by its own children while there are at most `most`."""

    def children(name: str) -> list[str]:
        prefix = f"{name}." if name else ""
        return [prefix + child for child, module in modules[name].named_children() if has_parameters(module)]

    def size(name: str) -> int:
        return sum(value.numel() for value in modules[name].parameters())

    modules = dict(model.named_modules())
    parts = children("")
    if not parts:
        raise ValueError("randomisation: the network must have layers with parameters (got none)")
    while True:
        opened = []
        for name in sorted(parts, key=size, reverse=True):
            inner = children(name)
            own = has_parameters(modules[name], recurse=False)
            if inner and not own and len(parts) - 1 + len(inner) <= most:
                opened = [part for one in parts for part in (inner if one == name else [one])]
                break
        if not opened:
            return parts[::-1]
        parts = opened
