"""Sections for P3's further figures: the targets' line (34), one step and many (43), one-step boundary attacks (A,
B)."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from apem_fast.ops import saliency_map
from apem_fast.siamese.comparisons import compare_one_and_many_steps
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.one_step import one_step_attack
from apem_fast.siamese.pairs import RankedImages, metric_target
from apem_fast.siamese.perception import perceive
from apem_fast.siamese.report.page import Plot, RankerSection, Row, Tile
from apem_fast.siamese.saliency import superimpose

__all__ = ["boundary_section", "one_and_many_section", "target_section"]

BINS = 10  # of an attribute with more values than so many
PER_BIN = 40  # images


def target_section(ranker: Ranker, data: RankedImages) -> RankerSection:
    """The target of a pair as its first attribute runs, and what the network says (P3 Figure 34).

    P3 compares with a digit 5; here it is the value nearest to five ninths of the range.
    """
    values = data.values.cpu()
    reference = float(values[(values - (data.low + 5 / 9 * (data.high - data.low))).abs().argmin()])
    edges = values.unique()
    if len(edges) > BINS:
        edges = torch.linspace(data.low, data.high, BINS, dtype=torch.float32, device="cpu")
    nearest = (values[:, None] - edges[None]).abs().argmin(dim=1)
    other = (values == reference).nonzero()[:PER_BIN, 0]
    embedded = _embed(ranker, data.batch(other))
    spots, middle, spread = [], [], []
    for place in range(len(edges)):
        chosen = (nearest == place).nonzero()[:PER_BIN, 0]
        if not len(chosen):
            continue
        first = _embed(ranker, data.batch(chosen))
        with torch.no_grad():
            score = ranker.rank_embeddings(
                first.repeat_interleave(len(embedded), 0), embedded.repeat(len(first), *[1] * (embedded.dim() - 1))
            )
        spots.append(float(values[chosen].mean()))
        middle.append(float(score.mean()))
        spread.append(float(score.std(correction=0)))
    line = torch.tensor([data.low, data.high], dtype=torch.float32, device="cpu")
    target = metric_target(line, torch.full_like(line, reference), data.low, data.high)
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(line.numpy(), target.numpy(), color="#777", linewidth=1, label="target (equation 15)")
    axes.errorbar(spots, middle, spread, fmt="o", color="#1f6f8b", capsize=2, markersize=4, label="this network")
    axes.axhline(0.5, color="#bbb", linewidth=0.8, linestyle="--")
    axes.set_xlabel(f"{data.attribute} of the first image")
    axes.set_ylabel("ranking")
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return RankerSection(
        f"Compared with {data.attribute} {reference:g}",
        "What a pair should be ranked as when the second image stays what it is, and what this network makes of images "
        "that it was not trained on (P3 Figure 34). The line is read backwards to tell what a ranking stands for.",
        [Plot.of(figure, "Means over pairs, and their standard deviations.")],
        {"values": spots, "ranking": middle, "standard deviation": spread},
    )


@torch.no_grad()
def _embed(ranker: Ranker, images: Tensor) -> Tensor:
    return ranker.embed(images.to(ranker.device))


def one_and_many_section(
    ranker: Ranker, data: RankedImages, first: Tensor, second: Tensor, *, steps: int
) -> RankerSection:
    """One pair's attack to 0 in many steps, and the one step as long (P3 Figure 43)."""
    a, b = data.batch(first[:1]), data.batch(second[:1])
    compared = compare_one_and_many_steps(ranker, a, b, 0.0, steps=steps)
    one, many = compared.first, compared.second
    pair = [Tile(a[0], f"A: {one.score_before[0]:.2f}"), Tile(b[0], "B")]
    if ranker.reconstructs:
        pair.append(Tile(perceive(ranker, a)[0], "perception of A"))
    rows = [Row("the pair", pair)]
    for name, result in (("many steps", many), ("one step", one)):
        saliency = saliency_map(a, result.perturbed)
        tiles = [
            Tile(result.perturbed[0], f"A': {result.score_after[0]:.2f}"),
            Tile(saliency[0], "saliency"),
            Tile(superimpose(a, saliency)[0], "red on blue"),
        ]
        if ranker.reconstructs:
            tiles.append(Tile(perceive(ranker, result.perturbed)[0], "perception of A'"))
        rows.append(Row(name, tiles))
    return RankerSection(
        "One step and many",
        f"The attack to 0 moves {float(many.distance[0]):.3g} in {int(many.steps_taken[0])} steps; one step along the "
        f"gradient at A goes as far. Angle between the two {float(compared.angle[0]):.0f}°, Spearman's correlation of "
        f"their saliency maps {float(compared.correlation[0]):.2f}; for its single sample P3 gives .71 (Figure 43).",
        rows,
        {"angle": compared.angle.tolist(), "correlation": compared.correlation.tolist()},
    )


def boundary_section(ranker: Ranker, data: RankedImages, first: Tensor, second: Tensor) -> RankerSection:
    """One-step attacks to either end of the range, with maps and perceptions (P3 Appendices A and B)."""
    a, b = data.batch(first), data.batch(second)
    seen = perceive(ranker, a) if ranker.reconstructs else None
    rows, numbers = [], {}
    for target, appendix in ((0.0, "A"), (1.0, "B")):
        result = one_step_attack(ranker, a, b, target)
        saliency = saliency_map(a, result.perturbed)
        drawn = superimpose(a, saliency)
        after = perceive(ranker, result.perturbed) if ranker.reconstructs else None
        numbers[f"to {target:g}"] = {
            "ranking before": result.score_before.tolist(),
            "ranking after": result.score_after.tolist(),
            "distance": result.distance.tolist(),
            "reached": result.reached.tolist(),
        }
        for i in range(len(a)):
            tiles = [Tile(a[i], f"A: {result.score_before[i]:.2f}"), Tile(b[i], "B")]
            tiles.append(Tile(result.perturbed[i], f"A': {result.score_after[i]:.2f}"))
            tiles += [Tile(saliency[i], "saliency"), Tile(drawn[i], "red on blue")]
            if seen is not None and after is not None:
                tiles += [Tile(seen[i], "perception of A"), Tile(after[i], "perception of A'")]
            rows.append(Row(f"Appendix {appendix}, to {target:g}", tiles))
    return RankerSection(
        "One step to either end",
        "A single step along the gradient at the original, as long as it takes to rank as the least or the greatest "
        "possible, or as the image's own norm where the line never gets there (P3 Appendices A and B). Every gradient "
        "here "
        "belongs to the original image.",
        rows,
        numbers,
    )
