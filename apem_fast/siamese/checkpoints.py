"""Files of trained and partly trained rankers. Loading one runs no code, and a damaged one is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from apem_fast.files.checksums import Damaged, checked_tensors, tensors_with_checksum
from apem_fast.files.whole import write_whole
from apem_fast.siamese.networks import RANKERS, SiameseRanker

__all__ = ["load_ranker", "save_ranker"]

TRAINING = "apem_fast siamese training, 2"
RANKER = "apem_fast siamese ranker, 1"


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes the file whole, with a checksum, so that a stopped run leaves the previous checkpoint.

    Its folder must exist. If it has vanished, with the previous checkpoint in it, it is not made again silently.
    """
    write_whole(path, tensors_with_checksum(content))


def make_folder(path: Path) -> None:
    """Makes the folder of a file, before the file is written for the first time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be written ({error.strerror})") from None


def read(path: Path, kind: str, of: str) -> dict[str, Any]:
    try:
        content = checked_tensors(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{of}: checkpoint must be a file that exists (got {path})") from None
    except (OSError, Damaged) as error:
        raise ValueError(f"{of}: checkpoint must be one that apem_fast wrote (got {path}: {error})") from None
    if content.get("kind") != kind:
        came = content.get("kind", "no kind")
        raise ValueError(f'{of}: checkpoint must be of kind "{kind}" (got {path}: {came})')
    return content


def require_same_architecture(module: nn.Module, state: dict[str, torch.Tensor], of: str, path: Path) -> None:
    """Raises a sentence that names the first difference, in the order of the network."""
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    came = {name: tuple(value.shape) for name, value in state.items()}
    for name in [*expected, *came]:
        if expected.get(name) != came.get(name):
            raise ValueError(
                f"{of}: checkpoint must be of the architecture of ranker, whose {name} is "
                f"{expected.get(name, 'absent')} (got {came.get(name, 'none')} in {path})"
            )


def save_ranker(path: str | Path, ranker: SiameseRanker, architecture: str, size: int, **facts: Any) -> None:
    """Writes a ranker of one of P3's architectures (a name of `RANKERS`) and `facts` about it (numbers, strings).

    Raises:
        ValueError: the architecture is none of them, or the file cannot be written, as where its folder is not there.
    """
    if architecture not in RANKERS:
        raise ValueError(f"save_ranker: architecture must be one of {', '.join(RANKERS)} (got {architecture})")
    content = {"kind": RANKER, "architecture": architecture, "size": size, "facts": facts}
    write(Path(path), content | {"state": ranker.state_dict()})


def load_ranker(path: str | Path) -> tuple[SiameseRanker, dict[str, Any]]:
    """The ranker that `save_ranker` wrote, in evaluation mode, and the facts (with its architecture and size)."""
    content = read(Path(path), RANKER, "load_ranker")
    if content["architecture"] not in RANKERS:
        known = ", ".join(RANKERS)
        raise ValueError(f"load_ranker: architecture must be one of {known} (got {content['architecture']} in {path})")
    with torch.random.fork_rng(devices=[]):
        ranker = RANKERS[content["architecture"]](content["size"])
    require_same_architecture(ranker, content["state"], "load_ranker", Path(path))
    ranker.load_state_dict(content["state"])
    facts = content["facts"] | {"architecture": content["architecture"], "size": content["size"]}
    return ranker.eval(), facts
