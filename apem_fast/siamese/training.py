"""The training loop of all regimes (`regimes.py`): it shows progress, stops and resumes.

A step draws `images` random images, embeds each once, and ranks `pairs` random pairs of them, which costs a fraction of
P3's training pair by pair. A pair may consist of an image and itself (one in `images`), with the target 0.5; P3 does
not say whether it may, and learning it does no harm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from apem_fast.results import Result
from apem_fast.seeding import seeded
from apem_fast.siamese import checkpoints
from apem_fast.siamese.networks import SiameseRanker
from apem_fast.siamese.pairs import RankedImages
from apem_fast.validation import make_numbers_plain

__all__ = ["Batch", "Training", "TrainingOptions", "fit"]


@dataclass(frozen=True)
class TrainingOptions:
    """The options of a training: its length, its data, its optimiser and its checkpoint.

    Attributes:
        steps: optimiser steps.
        images, pairs: drawn at each step; the pairs are of these images.
        shift: every image is moved at random by up to so many pixels in each direction, and black fills the edge: cheap
            data augmentation for few images. 0, as in P3, for none.
        learning_rate: of Adam, falling to 0 along half a cosine.
        seed: of every random draw. The caller's random state is not changed.
        checkpoint: a file that is resumed from if it exists, and written every `checkpoint_every` steps and at the end.
            On the CPU, a resumed run gives the same numbers as an uninterrupted one.
        progress: whether to show a progress bar.
    """

    steps: int = 2000
    images: int = 128
    pairs: int = 256
    shift: int = 0
    learning_rate: float = 1e-3
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_every: int = 250
    progress: bool = True

    def __post_init__(self) -> None:
        make_numbers_plain(self)
        for name, least in (("steps", 0), ("images", 1), ("pairs", 1), ("shift", 0), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"TrainingOptions: {name} must be at least {least} (got {getattr(self, name)})")
        if not self.learning_rate > 0:
            raise ValueError(f"TrainingOptions: learning_rate must be greater than 0 (got {self.learning_rate})")

    def stage(self, name: str) -> TrainingOptions:
        """The options of one stage of a regime with several stages; each has its own checkpoint."""
        path = self.checkpoint
        return self if path is None else replace(self, checkpoint=path.with_stem(f"{path.stem}-{name}"))


@dataclass(frozen=True, eq=False, repr=False)
class Training(Result):
    """The result of a training: the loss at every step (on the CPU), and the step that it resumed from (0 if new).

    `encoder` is the autoencoder's own encoder if the regime trains one beside the ranker (mirroring).
    """

    regime: str
    losses: Tensor
    resumed_from: int
    encoder: nn.Module | None = None


@dataclass(frozen=True)
class Batch:
    """One step's images (M, C, H, W), their attributes (M,), and pairs of them: indices and targets (P,).

    All of it is on the ranker's device.
    """

    images: Tensor
    values: Tensor
    first: Tensor
    second: Tensor
    target: Tensor


def _draw(data: RankedImages, options: TrainingOptions, device: torch.device) -> Batch:
    index = torch.randint(len(data), (options.images,), device="cpu")
    first, second = torch.randint(options.images, (2, options.pairs), device="cpu")
    target = data.target(index[first], index[second])
    images = _shifted(data.batch(index), options.shift) if options.shift else data.batch(index)
    return Batch(*(part.to(device) for part in (images, data.values[index], first, second, target)))


def _shifted(images: Tensor, most: int) -> Tensor:
    """Images moved by random whole numbers of pixels, at most `most` in each direction."""
    n, _, height, width = images.shape
    padded = nn.functional.pad(images, (most,) * 4)
    down, right = torch.randint(2 * most + 1, (2, n), device="cpu").to(images.device)
    image, row, column = (torch.arange(size, device=images.device) for size in (n, height, width))
    rows, columns = (down[:, None] + row)[:, :, None], (right[:, None] + column)[:, None, :]
    return padded[image[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def fit(
    regime: str,
    ranker: SiameseRanker,
    trained: dict[str, nn.Module],
    data: RankedImages,
    objective: Callable[[Batch], Tensor],
    options: TrainingOptions,
) -> Training:
    """Minimises `objective`, a function of a step's batch, over the `trained` modules, which are in training mode.

    The rest of the ranker is in evaluation mode; afterwards all of it is. `regime` is the name in the progress bar, in
    errors and in checkpoints; a checkpoint of another regime is refused.
    """
    modules = nn.ModuleDict(trained)
    parameters = list(modules.parameters())
    optimiser = torch.optim.Adam(parameters, lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(options.steps, 1))
    losses: list[float] = []
    path = options.checkpoint
    with seeded(options.seed, ranker.device):
        if path is not None:
            checkpoints.make_folder(path)
        if path is not None and path.exists():
            losses = _resume(path, regime, ranker.device, modules, optimiser, schedule, options)
        resumed_from = len(losses)
        ranker.eval()
        modules.train()
        bar = tqdm(total=options.steps, initial=resumed_from, desc=regime, disable=not options.progress, leave=False)
        try:
            for step in range(resumed_from, options.steps):
                loss = objective(_draw(data, options, ranker.device))
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise ValueError(f"{regime}: loss must be finite (got {value} at step {step}); lower learning_rate")
                # Not .backward(), since frozen modules must not accumulate gradients.
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimiser.step()
                schedule.step()
                losses.append(value)
                bar.update()
                bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
                if path is not None and (step + 1 == options.steps or (step + 1) % options.checkpoint_every == 0):
                    _save(path, regime, ranker.device, modules, optimiser, schedule, options, losses)
        finally:
            bar.close()
            optimiser.zero_grad(set_to_none=True)
            modules.eval()
            ranker.eval()
    return Training(regime, torch.tensor(losses, dtype=torch.float64, device="cpu"), resumed_from)


def _decisive(options: TrainingOptions) -> dict[str, int | float]:
    """The options that the numbers of a training depend on."""
    return {n: getattr(options, n) for n in ("steps", "images", "pairs", "shift", "learning_rate", "seed")}


def _save(
    path: Path,
    regime: str,
    device: torch.device,
    modules: nn.ModuleDict,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    options: TrainingOptions,
    losses: list[float],
) -> None:
    checkpoints.write(
        path,
        {
            "kind": checkpoints.TRAINING,
            "regime": regime,
            "options": _decisive(options),
            "state": modules.state_dict(),
            "optimiser": optimiser.state_dict(),
            "schedule": schedule.state_dict(),
            "random": torch.get_rng_state(),
            "random_on_gpu": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "losses": losses,
        },
    )


def _resume(
    path: Path,
    regime: str,
    device: torch.device,
    modules: nn.ModuleDict,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    options: TrainingOptions,
) -> list[float]:
    content = checkpoints.read(path, checkpoints.TRAINING, regime)
    if content["regime"] != regime:
        raise ValueError(f"{regime}: checkpoint must be of this regime (got {content['regime']} in {path})")
    for name, value in _decisive(options).items():
        if content["options"][name] != value:
            raise ValueError(
                f"{regime}: {name} must be that of the checkpoint, {content['options'][name]} (got {value}; {path} "
                "goes on where it was, another file would start afresh)"
            )
    checkpoints.require_same_architecture(modules, content["state"], regime, path)
    modules.load_state_dict(content["state"])
    optimiser.load_state_dict(content["optimiser"])
    schedule.load_state_dict(content["schedule"])
    torch.set_rng_state(content["random"])
    if device.type == "cuda" and content.get("random_on_gpu") is not None:  # none: it was begun on a CPU
        torch.cuda.set_rng_state(content["random_on_gpu"], device)
    return content["losses"]
