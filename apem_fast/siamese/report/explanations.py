"""The sections of the explanation page: P3's figures for a ranker and pairs of its images, and for two faces."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from apem_fast.ops import saliency_map
from apem_fast.siamese.attacking import attack, mid_point_attack
from apem_fast.siamese.automatic import SHARE, usual_step
from apem_fast.siamese.comparisons import masking_importance
from apem_fast.siamese.networks import Ranker
from apem_fast.siamese.pairs import RankedImages
from apem_fast.siamese.perception import interpolate_perceptions, perceive, perception_change
from apem_fast.siamese.recycling import recycle
from apem_fast.siamese.report.page import RankerSection, RankerTable, Row, Tile
from apem_fast.siamese.results import AttackResult
from apem_fast.siamese.saliency import superimpose, tessellate
from apem_fast.siamese.wrapped import ScoreRanker

__all__ = [
    "advanced_section",
    "face_sections",
    "maps_section",
    "perception_section",
    "progression_section",
    "recycling_section",
]

SHOWN = 8  # tiles of a progression


def choose_pairs(data: RankedImages, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of random pairs of different attributes, the first image above the second and below it in turn.

    Raises:
        ValueError: fewer than two images, or all of one attribute: there is no such pair.
    """
    generator, values = torch.Generator().manual_seed(seed), data.values.tolist()
    if len(set(values)) < 2:
        came = f"{len(values)} images, all of {data.attribute} {values[0]:g}" if len(values) > 1 else "one image"
        raise ValueError(
            f"pairs: the images held out must differ in {data.attribute}, or nothing can be ranked (got {came}); "
            f"train on more images, or on others"
        )
    first: list[int] = []
    second: list[int] = []
    while len(first) < count:
        a, b = (int(i) for i in torch.randint(len(data), (2,), device="cpu", generator=generator))
        if values[a] != values[b]:
            above = len(first) % 2 == 0
            a, b = (a, b) if (values[a] > values[b]) == above else (b, a)
            first.append(a)
            second.append(b)
    return torch.tensor(first, device="cpu"), torch.tensor(second, device="cpu")


def value_of(data: RankedImages, index: Tensor) -> list[str]:
    return [f"{data.attribute} {data.values[i]:g}" for i in index.tolist()]


def perception_section(ranker: Ranker, data: RankedImages, count: int = 9) -> RankerSection:
    """Held-out images and their perceptions: one image of each value, as far as there are any."""
    of_image = data.values.cpu()
    values = of_image.unique()
    chosen = torch.linspace(0, len(values) - 1, count, dtype=torch.float32, device="cpu").round().long()
    index = torch.stack([(of_image == value).nonzero()[0, 0] for value in values[chosen]])
    images = data.batch(index)
    seen = perceive(ranker, images)
    error = (seen - images).square().flatten(1).mean(dim=1).sqrt()
    return RankerSection(
        "What the network sees",
        "Images held out of the training, and their perceptions: reconstructions from nothing but the embedding that "
        "the ranking is made from. Under each, its root mean square error in pixel values.",
        [
            Row("input", [Tile(i, c) for i, c in zip(images, value_of(data, index), strict=True)]),
            Row("perception", [Tile(i, f"{e:.3f}") for i, e in zip(seen, error, strict=True)]),
        ],
        {"reconstruction error": error.tolist()},
    )


def _shown(steps: int) -> tuple[int, ...]:
    """Steps for a progression: close together at first, where a perception changes fastest."""
    return tuple(dict.fromkeys(round(steps * (k / (SHOWN - 1)) ** 2) for k in range(SHOWN)))


def _known(values: Tensor | None) -> Tensor:
    """The value, which is never None because the attack was asked for it."""
    assert values is not None
    return values


def _progression(result: AttackResult) -> list[Tile]:
    """P3 labels a progression with 1 - L, L the distance to the target; here the ranking itself is given."""
    steps = result.options.perceptions_at
    return [
        Tile(image, f"{result.score[0, k]:.2f} after {k}" if k else f"{result.score[0, 0]:.2f} at first")
        for k, image in zip(steps, _known(result.perceptions)[0], strict=True)
    ]


def progression_section(
    ranker: Ranker, data: RankedImages, first: Tensor, second: Tensor, *, steps: int
) -> RankerSection:
    """Attacks on one pair's embedding and on its input, beside a straight line (P3 Figures 33-35, 40)."""
    a, b = data.batch(first[:1]), data.batch(second[:1])
    steps_shown = _shown(steps)
    rows = [Row("the pair", [Tile(a[0], value_of(data, first)[0]), Tile(b[0], value_of(data, second)[0])])]
    numbers = {}
    kinds: tuple[tuple[str, Literal["input", "embedding"], float], ...] = (
        ("embedding to 0", "embedding", 0.0),
        ("embedding to 1", "embedding", 1.0),
        ("input to 0", "input", 0.0),
        ("input to 1", "input", 1.0),
    )
    for name, space, target in kinds:
        result = attack(ranker, a, b, target, steps=steps, space=space, perceptions_at=steps_shown)
        tiles = _progression(result)
        if space == "input":
            tiles.append(Tile(result.perturbed[0], f"A', moved {result.distance[0]:.2g}"))
        rows.append(Row(name.replace(" to ", " to\u00a0"), tiles))
        numbers[name] = {"ranking": result.score[0, list(steps_shown)].tolist(), "distance": float(result.distance)}
    between = interpolate_perceptions(ranker, a, b, SHOWN)[0]
    parts = torch.linspace(0, 1, SHOWN).tolist()
    rows.append(Row("straight line", [Tile(i, f"{p:.0%} of the way") for i, p in zip(between, parts, strict=True)]))
    return RankerSection(
        "Where the gradient leads",
        "Only the first image of the pair changes, until it ranks as the least or the greatest possible; the second "
        "stays. The perceptions on the way show what the network takes the attribute to be. An attack on the embedding "
        "(Algorithm 1) moves what it sees; an attack on the input (Algorithm 2) moves the picture, shown at the end of "
        "its row. Last, the straight line between the two embeddings, which blends the pair instead.",
        rows,
        numbers,
    )


def maps_section(ranker: Ranker, data: RankedImages, first: Tensor, second: Tensor, *, steps: int) -> RankerSection:
    """Why each pair ranks as it does: mid-point attacks and every map that can be drawn of them."""
    a, b = data.batch(first), data.batch(second)
    result = mid_point_attack(ranker, a, b, steps=steps)
    saliency = saliency_map(a, result.perturbed)
    change = perception_change(ranker, a, result.perturbed) if ranker.reconstructs else None
    drawn = {flavour: superimpose(a, saliency, flavour) for flavour in ("red on blue", "green on red")}
    tiles, names = tessellate(a, saliency), list(zip(value_of(data, first), value_of(data, second), strict=True))
    rows = []
    for i, (name_a, name_b) in enumerate(names):
        row = [
            Tile(a[i], f"A: {name_a}"),
            Tile(b[i], f"B: {name_b}"),
            Tile(result.perturbed[i], f"A', moved {result.distance[i]:.3g}"),
            Tile(saliency[i], "saliency"),
            Tile(drawn["red on blue"][i], "red on blue"),
            Tile(drawn["green on red"][i], "green on red"),
            Tile(tiles[i], "super-pixels"),
        ]
        if change is not None:
            row += [Tile(change.after[i], "perception of A'"), Tile(change.saliency[i], "where it changed")]
        rows.append(Row(f"{result.score_before[i]:.3f} to {result.score_after[i]:.3f}", row))
    return RankerSection(
        "Why this pair ranks as it does",
        "The least change that the gradient finds to make the network call the two images equal: a mid-point attack. "
        "Bright pixels of the saliency map moved most (equations 28 and 29); it is laid over the image in two flavours "
        "for colour-blind readers (equation 30) and gathered in SLIC super-pixels by their greatest value. On the "
        "left, the ranking before and after; distances are l2, in pixel values.",
        rows,
        {
            "ranking before": result.score_before.tolist(),
            "ranking after": result.score_after.tolist(),
            "distance": result.distance.tolist(),
            "steps": result.steps_taken.tolist(),
            "reached": result.reached.tolist(),
        },
    )


def advanced_section(ranker: Ranker, data: RankedImages, first: Tensor, second: Tensor, *, steps: int) -> RankerSection:
    """Equation 25's three forces at equal score (P3 section 5.3.8, Figure 48), ZeroForce with and without its
    surrogate."""
    a, b = data.batch(first), data.batch(second)
    step_size, pull = usual_step(ranker, a, b, 0.5, steps)
    # Forces are shares of the gradient that pulls a pixel, so that they suit any network.
    step_size *= 4  # so that pairs that are slower than most arrive too
    step = step_size * pull
    far = step * max(1.0, SHARE * steps)  # about how far a pixel moves until the target is met
    fixed: dict[str, Any] = {"step_size": step_size}  # which scales the proximal operator
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("none", {}),
        ("TVForce", {"tv_force": 0.005 * pull}),
        ("TVForce, ten times", {"tv_force": 0.05 * pull}),
        ("DiffForce", {"diff_force": 0.02 * pull / far, "diff_reduction": "sum"}),
        ("DiffForce, ten times", {"diff_force": 0.2 * pull / far, "diff_reduction": "sum"}),
        ("ZeroForce, as in P3", {"zero_force": 100 * step**2 / step_size, "zero_surrogate": "none"} | fixed),
        ("ZeroForce, proximal", {"zero_force": 0.25 * step**2 / step_size} | fixed),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of step sizes: the table says what was reached
        results = {
            # A force balances the pull of the target a little before it, hence the wider precision.
            name: mid_point_attack(ranker, a, b, steps=steps, precision=0.01, **options)
            for name, options in kinds
        }
    everywhere = torch.stack([result.reached for result in results.values()]).all(dim=0)

    def mean(values: Tensor | None, digits: int) -> str:
        return (
            "none in common" if values is None or not bool(everywhere.any()) else f"{float(values.mean()):.{digits}f}"
        )

    table, rows, numbers = [], [], {}
    for name, result in results.items():
        reached = float(result.reached.double().mean())
        terms = (result.changed_pixels, result.total_variation, result.distance)
        chosen = [None if term is None else term[everywhere] for term in terms]
        numbers[name] = {"reached": reached, "distance": result.distance.tolist()}
        table.append([name, f"{reached:.0%}", mean(chosen[0], 0), mean(chosen[1], 2), mean(chosen[2], 3)])
        maps = saliency_map(a, result.perturbed)[everywhere][:7]
        counts = _known(result.changed_pixels)[everywhere]
        tiles = [Tile(m, f"{int(p)} pixels") for m, p in zip(maps, counts, strict=False)]
        if ranker.reconstructs:  # P3 Figure 48 shows the perceptions beside the maps
            tiles.append(Tile(perceive(ranker, result.perturbed[:1])[0], f"perception: {result.score_after[0]:.2f}"))
        rows.append(Row(name, tiles))
    return RankerSection(
        "What the forces do",
        f"The same mid-point attacks on {len(a)} pairs with each force of equation 25, so at equal score (to 0.01). "
        "The number of changed pixels has no gradient, and P3 found its force useless; by its proximal operator it "
        "leaves a pixel alone unless changing it is worth the price.",
        [
            RankerTable(
                ["force", "reached 0.5", "changed pixels", "total variation", "distance"],
                table,
                f"Means over the {int(everywhere.sum())} pairs that every one of them brought to 0.5.",
            ),
            *rows,
        ],
        numbers,
    )


def recycling_section(
    ranker: Ranker, data: RankedImages, first: Tensor, second: Tensor, *, steps: int
) -> RankerSection:
    """Algorithm 4: the change of the perception, added to the input (P3 section 5.3.7, Figure 47)."""
    a, b = data.batch(first), data.batch(second)
    low = attack(ranker, a, b, 0.0, steps=steps)
    again = recycle(ranker, a, b, low.perturbed)
    rows = [
        Row(
            f"pair {i + 1}",
            [
                Tile(a[i], f"A: {again.score_before[i]:.2f}"),
                Tile(again.perception_before[i], "its perception"),
                Tile(low.perturbed[i], f"A + e: {again.score_attacked[i]:.2f}"),
                Tile(again.perception_attacked[i], "its perception"),
                Tile(again.difference[i].abs(), "|d|"),
                Tile(again.recycled[i], f"A + d: {again.score_recycled[i]:.2f}"),
                Tile(again.perception_recycled[i], "its perception"),
            ],
        )
        for i in range(min(len(a), 4))
    ]
    return RankerSection(
        "The perception put back",
        "A boundary attack makes A + e; d is what it changed in the perception; A + d is put to the network again. P3 "
        "finds that the last perception follows the attack's while the ranking need not.",
        rows,
        {
            "ranking": again.score_before.tolist(),
            "attacked": again.score_attacked.tolist(),
            "recycled": again.score_recycled.tolist(),
        },
    )


def face_sections(
    ranker: ScoreRanker, faces: Tensor, names: tuple[str, str], *, steps: int = 100
) -> list[RankerSection]:
    """Two faces and a pretrained network that never ranked anything: who is older, why, and what it would take.

    The mid-point counts as reached where the ages are a year apart: that is how far apart the network's classes are.
    """
    from apem_fast.siamese.saliency import superpixel_maximum, superpixels
    from apem_fast.similarity import rank_correlation

    other = faces.flip(0)
    ages = ranker.embed(faces).detach()[:, 0]
    score = ranker.rank(faces, other).detach()
    older = names[0] if score[0] > 0.5 else names[1]
    a_year = 0.5 / (ranker.high - ranker.low)
    result = mid_point_attack(ranker, faces, other, steps=steps, bounds=(0.0, 1.0), precision=a_year)
    changed = ranker.embed(result.perturbed).detach()[:, 0]
    saliency = saliency_map(faces, result.perturbed)
    labels = superpixels(faces, 40)
    importance = masking_importance(ranker, faces, other, labels)
    agreement = [
        float(rank_correlation(m[None], s[None]))
        for m, s in zip(importance, superpixel_maximum(labels, saliency), strict=True)
    ]
    masked = torch.stack([(i / i.max())[label] for i, label in zip(importance, labels, strict=True)])[:, None]
    drawn = {flavour: superimpose(faces, saliency, flavour) for flavour in ("red on blue", "green on red")}
    tiles = tessellate(faces, saliency, 40)
    by_masking = tessellate(faces, masked.to(faces.dtype), 40)
    change = result.perturbed - faces
    enlarged = 0.5 / change.abs().amax(dim=(1, 2, 3), keepdim=True)  # so that it fills [0, 1] around grey
    difference = change * enlarged + 0.5
    rows = [
        Row(
            names[i],
            [
                Tile(faces[i], f"age {ages[i]:.0f}, ranking {score[i]:.2f}"),
                Tile(result.perturbed[i], f"age {changed[i]:.0f}, ranking {result.score_after[i]:.2f}"),
                Tile(difference[i], f"the change, {float(enlarged[i]):.1f} times"),
                Tile(saliency[i], "saliency"),
                Tile(drawn["red on blue"][i], "red on blue"),
                Tile(drawn["green on red"][i], "green on red"),
                Tile(tiles[i], "super-pixels, by the attack"),
                Tile(by_masking[i], "super-pixels, by blacking out"),
            ],
        )
        for i in range(2)
    ]
    return [
        RankerSection(
            "Who is older? A network that was never Siamese",
            f"A face-age network with its published weights becomes a ranker by equation 15. It takes the {names[0]} "
            f"for {ages[0]:.0f} and the {names[1]} for {ages[1]:.0f}, so the {older} for the older one. A mid-point "
            "attack asks what would have to change in a face for it to look as old as the other, to a year. "
            "Super-pixels show which regions say so by the attack and, independently, by blacking each of them out: "
            "from blue for the least to red for the greatest.",
            [
                *rows,
                RankerTable(
                    ["face", "l2 distance moved", "root mean square change", "agreement with blacking out (Spearman)"],
                    [
                        [
                            names[i],
                            f"{result.distance[i]:.2f}",
                            f"{_known(result.mean_squared)[i] ** 0.5:.4f}",
                            f"{agreement[i]:.2f}",
                        ]
                        for i in range(2)
                    ],
                    "Pixel values lie in [0, 1]; faces are 64 pixels wide, as the network takes them.",
                ),
            ],
            {
                "ages": ages.tolist(),
                "ages after": changed.tolist(),
                "ranking": score.tolist(),
                "ranking after": result.score_after.tolist(),
                "distance": result.distance.tolist(),
                "agreement with blacking out": agreement,
                "reached": result.reached.tolist(),
            },
        )
    ]
