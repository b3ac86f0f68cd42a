"""Explains one pair of images: P3's mid-point attack on it, every map of it, and sentences on the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import torch
from torch import Tensor

from apem_fast.files.pictures import data_uri, png_of
from apem_fast.ops import saliency_map
from apem_fast.results import Result
from apem_fast.siamese.attacking import attack
from apem_fast.siamese.bounds import Limit, normalised_bounds
from apem_fast.siamese.checks import check_pairs, rank_once
from apem_fast.siamese.comparisons import masking_importance
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.perception import perception_change
from apem_fast.siamese.results import AttackResult
from apem_fast.siamese.saliency import superimpose, superpixel_maximum, superpixels, tessellate
from apem_fast.siamese.tails import CosineTail, DistanceTail
from apem_fast.siamese.wrapped import ScoreRanker, Swapped
from apem_fast.similarity import rank_correlation
from apem_fast.validation import plain

__all__ = ["PairExplanation", "explain_pair"]

BROUGHT = {
    "no gradient": "the ranking does not depend on what may change, or too little for float32",
    "limit": "the image had by then changed by as much as it was allowed to",
    "overshoots": "the ranking swings around the target: the steps are too long; let them be found (step size auto)",
    "hardly moves": "the ranking hardly moves: the steps are too short, or it does not depend on what may change",
    "stalls": "the last quarter of the steps brought it no nearer: the target may be out of reach",
    "steps used up": "it was still on its way after the last step; allow more steps",
}


@dataclass(frozen=True, eq=False, repr=False)
class PairExplanation(Result):
    """The explanation of a pair's ranking by an attack on one of its images.

    Attributes:
        attacked: "first" or "second", the image that was attacked.
        result: the attack, of one pair; `result.path()` are its rankings and distances step by step.
        perturbed: A' (C, H, W), in the network's space.
        change: A' - A (C, H, W).
        pictures: by name, in the order of the page, (1 or 3, H, W) in [0, 1]: the images, the change, the saliency map
            (equations 28 and 29) alone, over the image and in super-pixels, the importance of super-pixels by blacking
            them out, and the perceptions if the ranker has a decoder.
        values: of a regressor, in its own units, those of "first", "second" and "perturbed"; else empty.
        agreement: Spearman's correlation, over super-pixels, of the attack's greatest saliency with the importance by
            blacking out, which is an independent check. NaN if one of them is constant.
        sentences: the result in words, one sentence each.
    """

    attacked: Literal["first", "second"]
    result: AttackResult
    perturbed: Tensor
    change: Tensor
    pictures: Mapping[str, Tensor]
    values: Mapping[str, float]
    agreement: float
    sentences: tuple[str, ...]

    @property
    def score_before(self) -> float:
        return float(self.result.score_before[0])

    @property
    def score_after(self) -> float:
        return float(self.result.score_after[0])

    @property
    def reached(self) -> bool:
        return bool(self.result.reached[0])

    @property
    def saliency(self) -> Tensor:
        """(1, H, W) in [0, 1]."""
        return self.pictures["saliency"]

    def __str__(self) -> str:
        return " ".join(self.sentences)

    def _said(self) -> list[str]:
        return [f"{self.attacked} image attacked", f"ranking {self.score_before:.3g} to {self.score_after:.3g}"]

    def _repr_html_(self) -> str:
        """The pictures and the sentences."""
        figures = "".join(
            f'<figure style="display: inline-block; margin: 4px"><img alt="" width="128" style="image-rendering: '
            f'pixelated" src="{data_uri(png_of(picture), "png")}"><figcaption>{escape(name)}</figcaption></figure>'
            for name, picture in self.pictures.items()
        )
        return f"<div><p>{escape(str(self))}</p>{figures}</div>"


def explain_pair(
    ranker: Ranker,
    first: Tensor,
    second: Tensor,
    *,
    target: float = 0.5,
    value: float | None = None,
    attacked: Literal["first", "second"] = "first",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bounds: Literal["pixels"] | tuple[Limit, Limit] | None = "pixels",
    region: Tensor | None = None,
    steps: int = 100,
    step_size: float | Literal["auto"] = "auto",
    precision: float = 1e-4,
    segments: int = 40,
    **options: Any,
) -> PairExplanation:
    """Explains why a network ranks two images as it does, by what would have to change in one of them (P3 4.4).

    Args:
        ranker: in evaluation mode: a `SiameseRanker`, a `ScoreRanker` around a regressor, a `Verifier` around an
            embedding network, or a `FusionRanker` around a network that takes the pair at once.
        first, second: (C, H, W) or (1, C, H, W), as the network takes them; they may have different sizes if it accepts
            both.
        target: the ranking to reach. 0.5 shows what would make the network call the two equal; 0 and 1 show what the
            least and the greatest look like.
        value: instead of a target, the number that a regressor should give the attacked image, in its own units.
        attacked: which of the images is changed.
        mean, std: of the network's normalisation, (pixels - mean) / std for each channel; None if it takes pixels in
            [0, 1]. They are used for the pictures and the bounds.
        bounds: "pixels" keeps pixels in [0, 1] before normalisation; None, or (lower, upper) in the network's space, as
            for `attack`.
        region: (H, W) bool, the pixels of the attacked image that may change; None for all.
        steps, step_size, precision: as for `attack`.
        segments: how many super-pixels are asked for.
        options: further options of `attack`: forces, damping, max_distance.

    Raises:
        ValueError, TypeError: one sentence naming the argument, what was expected and what came.
    """
    a, b = (_one("explain_pair", name, image) for name, image in (("first", first), ("second", second)))
    if attacked not in ("first", "second"):
        raise ValueError(f'explain_pair: attacked must be "first" or "second" (got {attacked!r})')
    if (mean is None) != (std is None):
        raise ValueError("explain_pair: mean and std must be given together (got one of them)")
    scale = _scale(a, mean, std)
    check_pairs("explain_pair", ranker, a, b, target)
    rank_once("explain_pair", ranker, a, b)
    regressor = ranker if isinstance(ranker, ScoreRanker) else None
    if value is not None:
        if regressor is None:
            raise ValueError(
                f"explain_pair: value must be given for a ScoreRanker only, whose units it is in "
                f"(got {value:g} for a {type(ranker).__name__}); give a target"
            )
        other = regressor.predict(b if attacked == "first" else a)
        of_first = float(regressor.target_for(value, other))
        target = of_first if attacked == "first" else 1 - of_first
    changed, kept = (a, b) if attacked == "first" else (b, a)
    result = attack(
        ranker if attacked == "first" else Swapped(ranker).eval(),
        changed,
        kept,
        target,
        region=region,
        bounds=_bounds(changed, bounds, mean, std),
        steps=steps,
        step_size=step_size,
        precision=precision,
        stop_when_reached=True,
        **options,
    )
    perturbed = result.perturbed
    values: dict[str, float] = {}
    if regressor is not None:
        each = (("first", a), ("second", b), ("perturbed", perturbed))
        values = {name: float(regressor.predict(image)) for name, image in each}
    pictures, agreement = _pictures(ranker, a, b, perturbed, attacked, scale, segments)
    sentences = _sentences(ranker, a, b, attacked, result, values)
    change = (perturbed - changed)[0]
    return PairExplanation(attacked, result, perturbed[0], change, pictures, values, agreement, sentences)


def _one(call: str, name: str, image: Tensor) -> Tensor:
    """(1, C, H, W)."""
    whole = image[None] if image.dim() == 3 else image
    if whole.dim() != 4 or len(whole) != 1 or whole.shape[1] not in (1, 3):
        raise ValueError(
            f"{call}: {name} must be one image, (C, H, W) or (1, C, H, W) with 1 or 3 channels "
            f"(got {tuple(image.shape)})"
        )
    return whole


def _scale(images: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None) -> tuple[Tensor, Tensor]:
    """The mean and std that turn the network's images into pixels, (1, C, 1, 1) each."""
    channels = images.shape[1]
    values = []
    for name, numbers, usual in (("mean", mean, 0.0), ("std", std, 1.0)):
        each = [usual] * channels if numbers is None else list(map(plain, numbers))
        row = torch.as_tensor(each, dtype=images.dtype, device="cpu")
        if row.shape != (channels,):
            raise ValueError(f"explain_pair: {name} must be {channels} numbers, one a channel (got {len(row)})")
        values.append(row.to(images.device).view(1, -1, 1, 1))
    return values[0], values[1]


def _bounds(
    images: Tensor,
    bounds: Literal["pixels"] | tuple[Limit, Limit] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Limit, Limit] | None:
    if not isinstance(bounds, str):
        return bounds
    if bounds != "pixels":
        raise ValueError(f'explain_pair: bounds must be "pixels", None or (lower, upper) (got {bounds!r})')
    if mean is not None and std is not None:
        return normalised_bounds(mean, std)
    low, high = float(images.min()), float(images.max())
    if low < -1e-5 or high > 1 + 1e-5:
        raise ValueError(
            f"explain_pair: images must be pixels in [0, 1], or mean and std say how they are normalised, or "
            f"bounds=None "
            f"(got min={low:g}, max={high:g})"
        )
    return 0.0, 1.0


def _pictures(
    ranker: Ranker,
    a: Tensor,
    b: Tensor,
    perturbed: Tensor,
    attacked: str,
    scale: tuple[Tensor, Tensor],
    segments: int,
) -> tuple[dict[str, Tensor], float]:
    """The pictures, and the agreement of the attack with blacking out."""
    mean, std = scale

    def pixels(images: Tensor) -> Tensor:
        return (images * std + mean).clamp(0, 1)

    own = ranker if attacked == "first" else Swapped(ranker).eval()
    changed, kept = (a, b) if attacked == "first" else (b, a)
    saliency = saliency_map(changed, perturbed)
    shown = pixels(changed)
    change = (perturbed - changed) * std
    largest = float(change.abs().max())
    labels = superpixels(shown, segments)
    importance = masking_importance(own, changed, kept, labels, fill=-mean / std)
    by_attack = superpixel_maximum(labels, saliency)
    agreement = float(rank_correlation(importance[0][None], by_attack[0][None]))
    greatest = importance[0].max()
    masked = (importance[0] / (greatest if greatest > 0 else 1))[labels[0]][None, None].to(shown.dtype)
    pictures = {
        "first": pixels(a),
        "second": pixels(b),
        "perturbed": pixels(perturbed),
        "change": change * (0.5 / largest if largest > 0 else 1) + 0.5,
        "saliency": saliency,
        "red on blue": superimpose(shown, saliency, "red on blue"),
        "green on red": superimpose(shown, saliency, "green on red"),
        "super-pixels": tessellate(shown, saliency, segments),
        "super-pixels by blacking out": tessellate(shown, masked.to(shown.device), segments),
    }
    if ranker.reconstructs:
        seen = perception_change(ranker, changed, perturbed)
        pictures["perception before"] = pixels(seen.before)
        pictures["perception after"] = pixels(seen.after)
        pictures["where the perception changed"] = seen.saliency
    return {name: picture[0].detach().cpu() for name, picture in pictures.items()}, agreement


def _sentences(
    ranker: Ranker, a: Tensor, b: Tensor, attacked: str, result: AttackResult, values: Mapping[str, float]
) -> tuple[str, ...]:
    before, after, target = (float(part[0]) for part in (result.score_before, result.score_after, result.target))
    sentences = [_verdict(ranker, a, b, before, values)]
    distance, norm = float(result.distance[0]), float(torch.linalg.vector_norm(a if attacked == "first" else b))
    share = f" ({distance / norm:.1%} of the image's norm)" if norm > 0 else ""
    if result.reached[0]:
        if int(result.steps_taken[0]) == 0:
            sentences.append(f"The ranking is {target:.3g} as it is: nothing had to change, and every map is 0.")
        else:
            became = f", now {values['perturbed']:.4g}" if values else ""
            sentences.append(
                f"A change of the {attacked} image of l2 length {distance:.3g}{share} brings the ranking to "
                f"{after:.4f}{became}."
            )
    else:
        became = f" (the {attacked} image is given {values['perturbed']:.4g})" if values else ""
        sentences.append(
            f"The target {target:.4g} was not reached: the ranking came from {before:.4f} to {after:.4f}{became} with "
            f"a "
            f"change of l2 length {distance:.3g}{share}; {BROUGHT[result.outcome[0]]}."
        )
    return tuple(sentences)


def _verdict(ranker: Ranker, a: Tensor, b: Tensor, score: float, values: Mapping[str, float]) -> str:
    if values:
        return (
            f"The network gives the first image {values['first']:.4g} and the second {values['second']:.4g}: a ranking "
            f"of {score:.4f}, where 0.5 is equal."
        )
    tail = getattr(ranker, "tail", None)
    if isinstance(tail, (DistanceTail, CosineTail)):
        with torch.no_grad():
            u, v = ranker.embed(a), ranker.embed(b)
        if isinstance(tail, DistanceTail):
            measured = f"distance {float(torch.linalg.vector_norm(u - v)):.4g}, threshold {tail.threshold:g}"
        else:
            cosine = float(torch.nn.functional.cosine_similarity(u, v))
            measured = f"cosine {cosine:.4f}, threshold {tail.threshold:g}"
        verdict = "the same" if score > 0.5 else "different"
        return f"The network takes the two for {verdict} ({measured}): a similarity of {score:.4f}."
    order = "above" if score > 0.5 else "below"
    return f"The network ranks the first image {order} the second: {score:.4f}, where 0.5 is equal."
