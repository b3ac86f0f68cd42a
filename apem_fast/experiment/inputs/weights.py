"""Reads a model's weights from the user's file, with one clear sentence if they do not fit."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

_NESTED_UNDER = ("state_dict", "model_state_dict", "model")  # where training checkpoints keep the weights


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name that `torch.save(model.state_dict(), path)` wrote, also if within a checkpoint.

    They are read with `weights_only=True`. The prefix that `DataParallel` adds to each name is removed.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"weights: {path} cannot be read ({error.strerror})") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        raise ValueError(
            f"weights: {path} must hold tensors alone, as torch.save(model.state_dict(), FILE) writes them; "
            "it is another kind of file, damaged, or holds Python objects, which are not loaded"
        ) from None
    for name in _NESTED_UNDER:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"weights: {path} must hold a dictionary of tensors by name (got {_content(state)})")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state


def class_count(state: dict[str, Tensor]) -> int:
    """The number of classes, which is the number of rows of the last tensor, the classifier's weight or bias."""
    last = list(state.values())[-1]
    return last.shape[0] if last.dim() else 0


def load_weights(model: nn.Module, state: dict[str, Tensor], name: str, path: str | Path) -> None:
    """Copies the tensors into the model.

    Raises:
        ValueError: they are of another architecture.
    """
    own = model.state_dict()
    # The number of batches seen, which old files lack; no output depends on it.
    wanted = [key for key in own if key in state or not key.endswith("num_batches_tracked")]
    unfit = [key for key in wanted if key not in state or state[key].shape != own[key].shape]
    surplus = [key for key in state if key not in own]
    if unfit or surplus:
        if unfit and unfit[0] in state:
            first = f"{unfit[0]} has shape {tuple(state[unfit[0]].shape)}, not {tuple(own[unfit[0]].shape)}"
        else:
            first = f"it has no {unfit[0]}" if unfit else f"it also has {surplus[0]}"
        raise ValueError(
            f"weights: {path} must be of {name}, and is of another architecture: of its {len(state)} tensors "
            f"{len(wanted) - len(unfit)} fit the model's {len(wanted)} ({first})"
        )
    model.load_state_dict(state, strict=False)


def _content(state: object) -> str:
    return f"a dictionary of {len(state)} entries" if isinstance(state, dict) else type(state).__name__
