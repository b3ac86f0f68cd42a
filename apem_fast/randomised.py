"""Re-initialises a network layer by layer, for parameter randomisation tests.

Everything here changes the module that it is given, so pass a copy.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from apem_fast.seeding import seeded, whole_seed


@dataclass(frozen=True)
class Part:
    """Layers that are re-initialised together."""

    title: str
    layers: tuple[nn.Module, ...]  # each with parameters of its own


def parts_of(network: nn.Module, names: Sequence[str] | None = None) -> list[Part]:
    """The parts of a network that can be re-initialised, in the order in which they will be.

    Args:
        network: any module.
        names: of submodules, such as ["fc", "layer4"], in the order in which they are to be re-initialised, each with
            all that is in it; None takes every layer that has parameters of its own, from the last registered to the
            first: from the output to the input in all but unusual networks.

    Raises:
        ValueError: a name that is not a submodule with parameters, or a network without any.
    """
    if names is None:
        parts = [
            Part(f"{type(layer).__name__} {name}".strip(), (layer,))
            for name, layer in network.named_modules()
            if _has_own_parameters(layer)
        ][::-1]
        if not parts:
            raise ValueError("randomisation: the network must have parameters (got none)")
        return parts
    modules = dict(network.named_modules())
    parts = []
    for name in names:
        layers = tuple(filter(_has_own_parameters, modules[name].modules())) if name in modules else ()
        if not layers:
            raise ValueError(f"randomisation: stages must name submodules with parameters (got {name!r})")
        parts.append(Part(name, layers))
    if not parts:
        raise ValueError("randomisation: stages must name at least one submodule (got none)")
    return parts


def randomised_stages(
    network: nn.Module, *, independent: bool = False, names: Sequence[str] | None = None, seed: int = 0
) -> Iterator[str]:
    """Re-initialises parts of `network` in place and yields the name of each while the network is in that state.

    A layer draws new parameters as it did when it was made (`reset_parameters`); batch norm also resets its statistics.
    Parameters of modules without that method keep their values, in random order. New values depend on the seed and on
    the part's position, so a part gets the same ones in either mode. The global random state is not changed.

    Args:
        network: changed in place.
        independent: whether only one part at a time is re-initialised and the others are as they were. Otherwise each
            part is re-initialised in addition to those before it (cascading).
        names: see `parts_of`.
        seed: any integer.
    """
    seed = whole_seed(seed)
    for place, part in enumerate(parts_of(network, names)):
        before = [copy.deepcopy(_own_state(layer)) for layer in part.layers]
        _reset(part, (seed << 20) + place)
        yield part.title
        if independent:
            with torch.no_grad():
                for layer, state in zip(part.layers, before):
                    for name, value in _own_state(layer).items():
                        value.copy_(state[name])


def _has_own_parameters(layer: nn.Module) -> bool:
    return any(True for _ in layer.parameters(recurse=False))


def _own_state(layer: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of the layer itself, which share its memory."""
    own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
    return {name: value.detach() for name, value in own}


def _reset(part: Part, seed: int) -> None:
    devices = {value.device for layer in part.layers for value in layer.parameters()}
    with seeded(seed % 2**63, *devices), torch.no_grad():
        for layer in part.layers:
            # Attention keeps its own under a private name.
            reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for values in layer.parameters(recurse=False):
                order = torch.randperm(values.numel(), device="cpu").to(values.device)
                values.copy_(values.flatten()[order].view_as(values))
