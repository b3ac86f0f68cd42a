"""The training regimes of P3, each a named function over one loop that shows progress, stops and resumes.

Every regime trains `ranker` in place and leaves it in evaluation mode. A step draws `images` random images, embeds
each once, and ranks `pairs` random pairs among them: what P3 does pair by pair, at a fraction of the cost. Image
errors are sums of squares over an image, as section 4.7 defines them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from apem_fast.siamese import checkpoints
from apem_fast.siamese.networks import SiameseRanker
from apem_fast.siamese.pairs import RankedImages

__all__ = [
    "Training",
    "TrainingOptions",
    "contrastive_loss",
    "fine_tune",
    "train_autoencoder",
    "train_autoencoder_first",
    "train_contrastive",
    "train_mirroring",
    "train_ranking",
    "train_simultaneous",
    "train_tail",
    "train_triplet",
    "triplet_loss",
]


@dataclass(frozen=True)
class TrainingOptions:
    """How long, with what, and where to keep it.

    Attributes:
        steps: optimiser steps.
        images, pairs: drawn at each step; the pairs are among the images.
        shift: every image drawn is moved by up to so many pixels in each direction, at random, black coming in: a
            cheap way to more data where there are few images. 0, as in P3, for none.
        learning_rate: of Adam, falling to 0 along half a cosine.
        seed: of every random draw. The caller's random state is left alone.
        checkpoint: a file to resume from where it exists, and to write every `checkpoint_every` steps and at the end.
            A resumed run gives, on the CPU, the numbers that one uninterrupted run gives.
        progress: show a progress bar.
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
        for name, least in (("steps", 0), ("images", 1), ("pairs", 1), ("shift", 0), ("checkpoint_every", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"TrainingOptions: {name} must be at least {least} (got {getattr(self, name)})")
        if not self.learning_rate > 0:
            raise ValueError(f"TrainingOptions: learning_rate must be greater than 0 (got {self.learning_rate})")

    def stage(self, name: str) -> TrainingOptions:
        """The options of one stage of a regime with several: each has a checkpoint of its own."""
        path = self.checkpoint
        return self if path is None else replace(self, checkpoint=path.with_stem(f"{path.stem}-{name}"))


@dataclass(frozen=True)
class Training:
    """What a regime did: the loss at every step, and the step that it resumed from (0 for a fresh run).

    `encoder` is the autoencoder's own encoder where the regime trains one beside the ranker (mirroring).
    """

    regime: str
    losses: Tensor
    resumed_from: int
    encoder: nn.Module | None = None


@dataclass(frozen=True)
class Batch:
    """One step's images (M, C, H, W), their attributes (M,), and pairs of them: indices and targets (P,)."""

    images: Tensor
    values: Tensor
    first: Tensor
    second: Tensor
    target: Tensor


def _draw(data: RankedImages, options: TrainingOptions) -> Batch:
    index = torch.randint(len(data), (options.images,))
    first, second = torch.randint(options.images, (2, options.pairs))
    target = data.target(index[first], index[second])
    images = _shifted(data.batch(index), options.shift) if options.shift else data.batch(index)
    return Batch(images, data.values[index], first, second, target)


def _shifted(images: Tensor, most: int) -> Tensor:
    """Every image moved by its own whole numbers of pixels, at most `most` each way."""
    n, _, height, width = images.shape
    padded = nn.functional.pad(images, (most,) * 4)
    down, right = torch.randint(2 * most + 1, (2, n))
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, :]
    return padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)


def _fit(
    regime: str,
    ranker: SiameseRanker,
    trained: dict[str, nn.Module],
    data: RankedImages,
    objective: Callable[[Batch], Tensor],
    options: TrainingOptions,
) -> Training:
    """The one loop. `trained` modules learn, in training mode; the rest of the ranker is in evaluation mode."""
    modules = nn.ModuleDict(trained)
    parameters = list(modules.parameters())
    optimiser = torch.optim.Adam(parameters, lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(options.steps, 1))
    losses: list[float] = []
    path = options.checkpoint
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        if path is not None and path.exists():
            losses = _resume(path, regime, modules, optimiser, schedule, options)
        resumed_from = len(losses)
        ranker.eval()
        modules.train()
        bar = tqdm(total=options.steps, initial=resumed_from, desc=regime, disable=not options.progress, leave=False)
        try:
            for step in range(resumed_from, options.steps):
                loss = objective(_draw(data, options))
                if not bool(loss.isfinite()):
                    raise ValueError(
                        f"{regime}: loss must be finite (got {float(loss.detach())} at step {step}); lower learning_rate"
                    )
                # Not .backward(): frozen modules must not gather gradients.
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimiser.step()
                schedule.step()
                losses.append(float(loss.detach()))
                bar.update()
                bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
                if path is not None and (step + 1 == options.steps or (step + 1) % options.checkpoint_every == 0):
                    _save(path, regime, modules, optimiser, schedule, options, losses)
        finally:
            bar.close()
            optimiser.zero_grad(set_to_none=True)
            modules.eval()
            ranker.eval()
    return Training(regime, torch.tensor(losses, dtype=torch.float64), resumed_from)


def _save(path, regime, modules, optimiser, schedule, options, losses) -> None:
    checkpoints.write(path, {
        "kind": checkpoints.TRAINING, "regime": regime, "steps": options.steps, "state": modules.state_dict(),
        "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict(), "random": torch.get_rng_state(),
        "losses": losses,
    })  # fmt: skip


def _resume(path, regime, modules, optimiser, schedule, options) -> list[float]:
    content = checkpoints.read(path, checkpoints.TRAINING, regime)
    if content["regime"] != regime:
        raise ValueError(f"{regime}: checkpoint must be of this regime (got {content['regime']} in {path})")
    if content["steps"] != options.steps:
        raise ValueError(
            f"{regime}: steps must be those of the checkpoint, {content['steps']}, because the learning rate "
            f"depends on them (got {options.steps})"
        )
    checkpoints.require_same_architecture(modules, content["state"], regime, path)
    modules.load_state_dict(content["state"])
    optimiser.load_state_dict(content["optimiser"])
    schedule.load_state_dict(content["schedule"])
    torch.set_rng_state(content["random"])
    return content["losses"]


# -- losses ------------------------------------------------------------------------------------------------------


def _ranking_loss(ranker: SiameseRanker, embedding: Tensor, batch: Batch) -> Tensor:
    score = ranker.rank_embeddings(embedding[batch.first], embedding[batch.second])
    return (score - batch.target).square().mean()


def _image_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    if reconstruction.shape != images.shape:
        raise ValueError(
            f"reconstruct: decoder must give images of shape {tuple(images.shape)} (got {tuple(reconstruction.shape)})"
        )
    return (images - reconstruction).square().flatten(1).sum(dim=1).mean()


def contrastive_loss(distance: Tensor, similar: Tensor, margin: float = 1.0) -> Tensor:
    """The mean of 1/2 D^2 over similar pairs and 1/2 max(0, margin - D)^2 over the others (P3 equations 7-9).

    Equation 8 gives the first term to the pairs labelled 0 while the text labels similar pairs 1; what the text says
    it is for, "low values of D for similar pairs", is what is done here.

    Args:
        distance: (P,) Euclidean distances of embeddings.
        similar: (P,) bool.
    """
    return torch.where(similar, distance.square(), (margin - distance).clamp(min=0).square()).mean() / 2


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float = 1.0) -> Tensor:
    """The mean of max(|f(A) - f(P)| - |f(A) - f(N)| + margin, 0) (P3 equation 10, which leaves out the "max").

    Args:
        anchor, positive, negative: embeddings (T, size).
    """
    gap = torch.linalg.vector_norm(anchor - positive, dim=1) - torch.linalg.vector_norm(anchor - negative, dim=1)
    return (gap + margin).clamp(min=0).mean()


def _require_decoder(ranker: SiameseRanker, regime: str) -> nn.Module:
    if ranker.decoder is None:
        raise ValueError(f"{regime}: ranker must have a decoder (got one without)")
    return ranker.decoder


# -- regimes -----------------------------------------------------------------------------------------------------


def train_simultaneous(
    ranker: SiameseRanker, data: RankedImages, options: TrainingOptions, *, ranking_weight: float = 1000.0
) -> Training:
    """Ranking and reconstruction at once: k * MSE(target, prediction) + the image errors of A and B (P3 equation 27).

    `ranking_weight` is k: what a squared error of 1 in the ranking costs, in squared pixel values.
    """
    decoder = _require_decoder(ranker, "train_simultaneous")

    def objective(batch: Batch) -> Tensor:
        embedding = ranker.embed(batch.images)
        images = 2 * _image_loss(batch.images, ranker.reconstruct(embedding))  # that of A and that of B
        return ranking_weight * _ranking_loss(ranker, embedding, batch) + images

    trained = {"branch": ranker.branch, "tail": ranker.tail, "decoder": decoder}
    return _fit("train_simultaneous", ranker, trained, data, objective, options)


def train_autoencoder(
    ranker: SiameseRanker,
    data: RankedImages,
    options: TrainingOptions,
    *,
    regularisation: Literal["none", "norm", "variational"] = "none",
    weight: float = 1.0,
) -> Training:
    """The branch and the decoder alone, as an autoencoder (P3 section 5.2.2).

    Args:
        regularisation: "norm" adds (1 - |e|)^2 (equation 33). "variational" reconstructs from a sample of a normal
            distribution whose mean is the embedding, and whose log-variance is a linear function of it that lives
            for the training only, and adds its divergence from the standard normal.
        weight: of what the regularisation adds; 1 in the paper.
    """
    if regularisation not in ("none", "norm", "variational"):
        raise ValueError(
            f'train_autoencoder: regularisation must be "none", "norm" or "variational" (got "{regularisation}")'
        )
    trained: dict[str, nn.Module] = {
        "branch": ranker.branch,
        "decoder": _require_decoder(ranker, "train_autoencoder"),
    }
    if regularisation == "variational":
        with torch.no_grad():
            size = _evaluated(ranker, data.batch(slice(0, 1))).shape[1]
        trained["log_variance"] = nn.utils.skip_init(nn.Linear, size, size)
        nn.init.zeros_(trained["log_variance"].weight)
        nn.init.constant_(trained["log_variance"].bias, -3.0)  # a narrow start, so that the mean is learnt first

    def objective(batch: Batch) -> Tensor:
        embedding = ranker.embed(batch.images)
        if regularisation == "norm":
            added = (1 - torch.linalg.vector_norm(embedding, dim=1)).square().mean()
        elif regularisation == "variational":
            log_variance = trained["log_variance"](embedding)
            divergence = (embedding.square() + log_variance.exp() - 1 - log_variance).sum(dim=1).mean() / 2
            embedding, added = embedding + torch.randn_like(embedding) * (log_variance / 2).exp(), divergence
        else:
            added = 0.0
        return _image_loss(batch.images, ranker.reconstruct(embedding)) + weight * added

    return _fit(f"train_autoencoder ({regularisation})", ranker, trained, data, objective, options)


def _evaluated(ranker: SiameseRanker, images: Tensor) -> Tensor:
    """An embedding that leaves the branch's mode, and its running statistics, as they were."""
    modes = {module: module.training for module in ranker.modules()}
    ranker.eval()
    try:
        return ranker.embed(images)
    finally:
        for module, mode in modes.items():
            module.training = mode


def train_tail(ranker: SiameseRanker, data: RankedImages, options: TrainingOptions) -> Training:
    """The tail alone, on branches that are frozen (P3 section 5.2.2)."""

    def objective(batch: Batch) -> Tensor:
        with torch.no_grad():
            embedding = ranker.embed(batch.images)
        return _ranking_loss(ranker, embedding, batch)

    return _fit("train_tail", ranker, {"tail": ranker.tail}, data, objective, options)


def train_autoencoder_first(
    ranker: SiameseRanker,
    data: RankedImages,
    options: TrainingOptions,
    *,
    regularisation: Literal["none", "norm", "variational"] = "norm",
) -> tuple[Training, Training]:
    """An autoencoder, then a tail on its frozen encoder (P3 section 5.2.2, Figure 31)."""
    first = train_autoencoder(ranker, data, options.stage("autoencoder"), regularisation=regularisation)
    return first, train_tail(ranker, data, options.stage("tail"))


def train_ranking(ranker: SiameseRanker, data: RankedImages, options: TrainingOptions) -> Training:
    """Branch and tail on the ranking alone; the decoder is left as it is (first half of P3 section 5.2.3)."""

    def objective(batch: Batch) -> Tensor:
        return _ranking_loss(ranker, ranker.embed(batch.images), batch)

    trained = {"branch": ranker.branch, "tail": ranker.tail}
    return _fit("train_ranking", ranker, trained, data, objective, options)


def fine_tune(ranker: SiameseRanker, data: RankedImages, options: TrainingOptions) -> Training:
    """Goes on from a pretrained autoencoder to the comparison task: the branches are allowed to change (section 5.2.2).

    The loss is the ranking's; the decoder is frozen, so what this costs the reconstructions can be measured.
    """
    return replace(train_ranking(ranker, data, options), regime="fine_tune")


def train_mirroring(
    ranker: SiameseRanker, data: RankedImages, options: TrainingOptions, *, mirror_weight: float = 10.0
) -> tuple[Training, Training]:
    """The ranker on its task alone; then an autoencoder whose encoder mimics its embeddings (P3 section 5.2.3).

    The second stage minimises the image error + k * MSE(e_siamese, e_encoder) (equation 36, k = `mirror_weight`) over
    a fresh encoder of the branch's architecture and the ranker's decoder, which then draws the ranker's perceptions.
    The encoder is in the second result.
    """
    decoder = _require_decoder(ranker, "train_mirroring")
    first = train_ranking(ranker, data, options.stage("ranking"))
    encoder = copy.deepcopy(ranker.branch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed + 1)
        for module in encoder.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    def objective(batch: Batch) -> Tensor:
        with torch.no_grad():
            siamese = ranker.embed(batch.images)
        embedding = encoder(batch.images).flatten(1)
        image = _image_loss(batch.images, ranker.reconstruct(embedding))
        return image + mirror_weight * (siamese - embedding).square().mean()

    trained = {"encoder": encoder, "decoder": decoder}
    second = _fit("train_mirroring", ranker, trained, data, objective, options.stage("mirror"))
    return first, replace(second, encoder=encoder)


def train_contrastive(
    ranker: SiameseRanker, data: RankedImages, options: TrainingOptions, *, margin: float = 1.0, within: float = 0.0
) -> Training:
    """The branch by the contrastive loss; images are similar whose attributes differ by at most `within` (eq. 7-9).

    Half of the pairs are drawn as P3 draws them, half among similar ones, which random draws seldom find.
    """

    def objective(batch: Batch) -> Tensor:
        alike = _alike(batch.values, within)
        matched = torch.multinomial(alike.to(torch.float32), 1)[:, 0]
        own = torch.arange(len(matched))
        first, second = torch.cat([batch.first, own]), torch.cat([batch.second, matched])
        embedding = ranker.embed(batch.images)
        distance = torch.linalg.vector_norm(embedding[first] - embedding[second], dim=1)
        return contrastive_loss(distance, alike[first, second], margin)

    return _fit("train_contrastive", ranker, {"branch": ranker.branch}, data, objective, options)


def train_triplet(
    ranker: SiameseRanker, data: RankedImages, options: TrainingOptions, *, margin: float = 1.0, within: float = 0.0
) -> Training:
    """The branch by the triplet loss (eq. 10); every image of a step that has a like and an unlike one is an anchor."""

    def objective(batch: Batch) -> Tensor:
        alike = _alike(batch.values, within)
        positive = (alike & ~torch.eye(len(alike), dtype=torch.bool)).to(torch.float32)
        negative = (~alike).to(torch.float32)
        anchor = ((positive.sum(dim=1) > 0) & (negative.sum(dim=1) > 0)).nonzero()[:, 0]
        embedding = ranker.embed(batch.images)
        if len(anchor) == 0:
            return embedding.sum() * 0
        like, unlike = (torch.multinomial(odds[anchor], 1)[:, 0] for odds in (positive, negative))
        return triplet_loss(embedding[anchor], embedding[like], embedding[unlike], margin)

    return _fit("train_triplet", ranker, {"branch": ranker.branch}, data, objective, options)


def _alike(values: Tensor, within: float) -> Tensor:
    return (values[:, None] - values[None, :]).abs() <= within
