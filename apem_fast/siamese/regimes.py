"""The training regimes of P3, one function each. Each trains `ranker` in place and leaves it in evaluation mode."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apem_fast.seeding import seeded
from apem_fast.siamese.losses import contrastive_loss, image_loss, ranking_loss, triplet_loss
from apem_fast.siamese.networks import SiameseRanker
from apem_fast.siamese.pairs import RankedImages
from apem_fast.siamese.training import Batch, Training, TrainingOptions, fit

__all__ = [
    "fine_tune",
    "train_autoencoder",
    "train_autoencoder_first",
    "train_contrastive",
    "train_fine_tuned",
    "train_mirroring",
    "train_ranking",
    "train_simultaneous",
    "train_tail",
    "train_triplet",
]


def _require_decoder(ranker: SiameseRanker, regime: str) -> nn.Module:
    if ranker.decoder is None:
        raise ValueError(f"{regime}: ranker must have a decoder (got one without)")
    return ranker.decoder


def train_simultaneous(
    ranker: SiameseRanker, data: RankedImages, options: TrainingOptions, *, ranking_weight: float = 1000.0
) -> Training:
    """Trains ranking and reconstruction at once: k * MSE(target, prediction) + the image errors of A and B (P3 eq. 27).

    `ranking_weight` is k: the weight of the ranking's squared error against squared errors of pixel values.
    """
    decoder = _require_decoder(ranker, "train_simultaneous")

    def objective(batch: Batch) -> Tensor:
        embedding = ranker.embed(batch.images)
        images = 2 * image_loss(batch.images, ranker.reconstruct(embedding))  # that of A and that of B
        return ranking_weight * ranking_loss(ranker, embedding, batch) + images

    trained = {"branch": ranker.branch, "tail": ranker.tail, "decoder": decoder}
    return fit("train_simultaneous", ranker, trained, data, objective, options)


def train_autoencoder(
    ranker: SiameseRanker,
    data: RankedImages,
    options: TrainingOptions,
    *,
    regularisation: Literal["none", "norm", "variational"] = "none",
    weight: float = 1.0,
) -> Training:
    """Trains the branch and the decoder alone, as an autoencoder (P3 section 5.2.2).

    Args:
        regularisation: "norm" adds (1 - |e|)^2 (equation 33). "variational" reconstructs from a sample of a normal
            distribution and adds its divergence from the standard normal. The mean is the embedding; the log-variance
            is a linear function of it, which exists only during the training.
        weight: of the regularisation; 1 in the paper.
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
            one = _evaluated(ranker, data.batch(slice(0, 1)).to(ranker.device))
        size = one.shape[1]
        log_variance: Any = nn.utils.skip_init(nn.Linear, size, size, device=one.device, dtype=one.dtype)
        nn.init.zeros_(log_variance.weight)
        trained["log_variance"] = log_variance
        nn.init.constant_(log_variance.bias, -3.0)  # a narrow start, so that the mean is learnt first

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
        return image_loss(batch.images, ranker.reconstruct(embedding)) + weight * added

    return fit(f"train_autoencoder ({regularisation})", ranker, trained, data, objective, options)


def _evaluated(ranker: SiameseRanker, images: Tensor) -> Tensor:
    """Embeds with the branch in evaluation mode, so that its running statistics do not change; restores its mode."""
    modes = {module: module.training for module in ranker.modules()}
    ranker.eval()
    try:
        return ranker.embed(images)
    finally:
        for module, mode in modes.items():
            module.training = mode


def train_tail(ranker: SiameseRanker, data: RankedImages, options: TrainingOptions) -> Training:
    """Trains the tail alone, on frozen branches (P3 section 5.2.2)."""

    def objective(batch: Batch) -> Tensor:
        with torch.no_grad():
            embedding = ranker.embed(batch.images)
        return ranking_loss(ranker, embedding, batch)

    return fit("train_tail", ranker, {"tail": ranker.tail}, data, objective, options)


def train_autoencoder_first(
    ranker: SiameseRanker,
    data: RankedImages,
    options: TrainingOptions,
    *,
    regularisation: Literal["none", "norm", "variational"] = "norm",
) -> tuple[Training, Training]:
    """Trains an autoencoder, then a tail on its frozen encoder (P3 section 5.2.2, Figure 31)."""
    first = train_autoencoder(ranker, data, options.stage("autoencoder"), regularisation=regularisation)
    return first, train_tail(ranker, data, options.stage("tail"))


def train_ranking(ranker: SiameseRanker, data: RankedImages, options: TrainingOptions) -> Training:
    """Trains branch and tail on the ranking alone, without the decoder (first half of P3 section 5.2.3)."""
    return _train_comparison("train_ranking", ranker, data, options)


def fine_tune(ranker: SiameseRanker, data: RankedImages, options: TrainingOptions) -> Training:
    """Trains a pretrained autoencoder on the comparison task; the branches may change (P3 section 5.2.2).

    The loss is the ranking's. The decoder is frozen, so the loss of quality in the reconstructions can be measured.
    """
    return _train_comparison("fine_tune", ranker, data, options)


def train_fine_tuned(ranker: SiameseRanker, data: RankedImages, options: TrainingOptions) -> tuple[Training, Training]:
    """Trains an autoencoder, then calls `fine_tune`: the route that P3 section 5.2.2 names and does not pursue."""
    first = train_autoencoder(ranker, data, options.stage("autoencoder"), regularisation="norm")
    return first, fine_tune(ranker, data, options.stage("fine-tuning"))


def _train_comparison(regime: str, ranker: SiameseRanker, data: RankedImages, options: TrainingOptions) -> Training:
    def objective(batch: Batch) -> Tensor:
        return ranking_loss(ranker, ranker.embed(batch.images), batch)

    return fit(regime, ranker, {"branch": ranker.branch, "tail": ranker.tail}, data, objective, options)


def train_mirroring(
    ranker: SiameseRanker, data: RankedImages, options: TrainingOptions, *, mirror_weight: float = 10.0
) -> tuple[Training, Training]:
    """Trains the ranker on its task, then an autoencoder whose encoder mimics its embeddings (P3 section 5.2.3).

    The second stage minimises the image error + k * MSE(e_siamese, e_encoder) (equation 36, k = `mirror_weight`). It
    trains a new encoder of the branch's architecture, and the ranker's decoder, which then draws the ranker's
    perceptions. The encoder is in the second result.
    """
    decoder = _require_decoder(ranker, "train_mirroring")
    first = train_ranking(ranker, data, options.stage("ranking"))
    encoder = copy.deepcopy(ranker.branch)
    with seeded(options.seed + 1, ranker.device):
        for module in encoder.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()

    def objective(batch: Batch) -> Tensor:
        with torch.no_grad():
            siamese = ranker.embed(batch.images)
        embedding = encoder(batch.images).flatten(1)
        image = image_loss(batch.images, ranker.reconstruct(embedding))
        return image + mirror_weight * (siamese - embedding).square().mean()

    trained = {"encoder": encoder, "decoder": decoder}
    second = fit("train_mirroring", ranker, trained, data, objective, options.stage("mirror"))
    return first, replace(second, encoder=encoder)


def train_contrastive(
    ranker: SiameseRanker, data: RankedImages, options: TrainingOptions, *, margin: float = 1.0, within: float = 0.0
) -> Training:
    """Trains the branch with the contrastive loss (eq. 7-9).

    Images are similar if their attributes differ by at most `within`. Half of the pairs are drawn as in P3, and half
    from similar pairs, which random draws seldom find.
    """

    def objective(batch: Batch) -> Tensor:
        alike = _alike(batch.values, within)
        matched = torch.multinomial(alike.to(torch.float32), 1)[:, 0]
        own = torch.arange(len(matched), device=matched.device)
        first, second = torch.cat([batch.first, own]), torch.cat([batch.second, matched])
        embedding = ranker.embed(batch.images)
        distance = torch.linalg.vector_norm(embedding[first] - embedding[second], dim=1)
        return contrastive_loss(distance, alike[first, second], margin)

    return fit("train_contrastive", ranker, {"branch": ranker.branch}, data, objective, options)


def train_triplet(
    ranker: SiameseRanker, data: RankedImages, options: TrainingOptions, *, margin: float = 1.0, within: float = 0.0
) -> Training:
    """Trains the branch with the triplet loss (eq. 10). Every image with a similar and a different one is an anchor."""

    def objective(batch: Batch) -> Tensor:
        alike = _alike(batch.values, within)
        itself = torch.eye(len(alike), dtype=torch.bool, device=alike.device)
        positive = (alike & ~itself).to(torch.float32)
        negative = (~alike).to(torch.float32)
        anchor = ((positive.sum(dim=1) > 0) & (negative.sum(dim=1) > 0)).nonzero()[:, 0]
        embedding = ranker.embed(batch.images)
        if len(anchor) == 0:
            return embedding.sum() * 0
        like, unlike = (torch.multinomial(odds[anchor], 1)[:, 0] for odds in (positive, negative))
        return triplet_loss(embedding[anchor], embedding[like], embedding[unlike], margin)

    return fit("train_triplet", ranker, {"branch": ranker.branch}, data, objective, options)


def _alike(values: Tensor, within: float) -> Tensor:
    return (values[:, None] - values[None, :]).abs() <= within
