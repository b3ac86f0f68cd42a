"""The sections of the validation page: this run's figures beside P3's published ones, and the sanity checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from apem_fast.ops import saliency_map
from apem_fast.siamese.attacking import attack
from apem_fast.siamese.comparisons import (
    AttackComparison,
    angle,
    compare_kinds,
    compare_mid_point_and_boundary,
    compare_one_and_many_steps,
    irrelevant_inputs,
    masking_agreement,
    mid_point_sensitivity,
)
from apem_fast.siamese.networks import Ranker, SiameseRanker
from apem_fast.siamese.perception import perception_change
from apem_fast.siamese.quality import RankerQuality
from apem_fast.siamese.recycling import recycle
from apem_fast.siamese.report.page import Plot, RankerSection, RankerTable, Row, Tile
from apem_fast.siamese.saliency import superpixels
from apem_fast.siamese.sanity import (
    CRITERION,
    Explanation,
    SanityCheck,
    cascading_randomisation,
    label_randomisation,
)
from apem_fast.similarity import rank_correlation

TRIED = 3  # pairs whose every insensitive input is tried at other values

__all__ = ["agreement_section", "label_section", "parameter_section", "regime_section", "sanity_plot"]


def agreement_section(
    ranker: SiameseRanker,
    quality: RankerQuality,
    a: Tensor,
    b: Tensor,
    *,
    steps: int,
) -> RankerSection:
    """P3's comparisons of sections 5.3.3 to 5.3.7 and its own published figures."""
    by_length = {
        k: compare_one_and_many_steps(ranker, a, b, 0.0, steps=k)
        for k in sorted({max(1, steps // part) for part in (100, 30, 10, 3, 1)})
    }
    one = by_length[steps]
    middle = compare_mid_point_and_boundary(ranker, a, b, steps=steps)
    reached = middle.first
    sensitive = mid_point_sensitivity(ranker, reached.perturbed, b).double().flatten(1).mean(dim=1)
    some = slice(0, TRIED)
    irrelevant = irrelevant_inputs(ranker, reached.perturbed[some], b[some]).double()
    kinds = compare_kinds(ranker, a, b, steps=steps)
    saliency = saliency_map(a, reached.perturbed)
    masking = masking_agreement(ranker, a, b, saliency, superpixels(a, 40))
    again = recycle(ranker, a, b, one.second.perturbed)
    followed = (again.score_recycled - again.score_before) / (again.score_attacked - again.score_before)
    perception = rank_correlation(
        again.perception_attacked - again.perception_before, again.perception_recycled - again.perception_before
    )
    noise = rank_correlation(again.difference, one.second.perturbed - a)
    rows = [
        ("mean deviation of the ranking", "at most .05", f"{quality.mean_deviation:.3f}"),
        ("that of a network that always says 0.5", "not given", f"{quality.baseline:.3f}"),
        ("one step and many, to the end: angle", "14°, distance not given", f"{one.mean_angle:.1f}°"),
        ("one step and many, to the end: rank correlation", ".75", f"{one.mean_correlation:.2f}"),
        ("the same, of a single pair", ".71", f"{float(one.correlation[0]):.2f}"),
        ("mid-point and boundary: angle", "not given", f"{middle.mean_angle:.1f}°"),
        ("mid-point and boundary: rank correlation", "“strongly correlated”", f"{middle.mean_correlation:.2f}"),
        ("mid-points reached, to 0.0001", "“approximations”", f"{float(reached.reached.double().mean()):.0%}"),
        ("inputs with a gradient at the mid-point", "“almost every feature”", f"{float(sensitive.mean()):.1%}"),
        ("inputs of which no value changes the ranking", "“few”", f"{float(irrelevant.mean()):.1%}"),
        (
            "recycling: share of the ranking's change that follows",
            "“can widely differ”",
            f"{float(followed.median()):.2f} (median)",
        ),
        (
            "recycling: rank correlation of the perceptions' changes",
            "“strongly resembles”",
            f"{float(perception.nanmean()):.2f}",
        ),
        ("recycling: rank correlation of d with the attack", "“low correlation”", f"{float(noise.nanmean()):.2f}"),
        ("mid-point saliency and blacking out super-pixels", "proposed", f"{float(masking.nanmean()):.2f}"),
    ]
    return RankerSection(
        "Do the explanations agree with each other?",
        f"Means over {len(a)} pairs of images that were held out, beside what P3 publishes for its face network "
        "(20 pairs). Angles are between perturbations, rank correlations are Spearman's.",
        [
            RankerTable(
                ["", "P3", "this run"],
                rows,
                "P3's are for UTKFace at 112 pixels; another network and other images need not give the same figures.",
            ),
            _distance_table(by_length, a),
            _kinds_table(kinds, a),
        ],
        {
            "one step and many, by steps": {k: [c.mean_angle, c.mean_correlation] for k, c in by_length.items()},
            "one step and many: angle": one.angle.tolist(),
            "one step and many: correlation": one.correlation.tolist(),
            "mid-point and boundary: angle": middle.angle.tolist(),
            "mid-point and boundary: correlation": middle.correlation.tolist(),
            "sensitive share": sensitive.tolist(),
            "masking agreement": masking.tolist(),
            "recycling: share followed": followed.tolist(),
        },
    )


def _kinds_table(kinds: Mapping[str, Tensor], images: Tensor) -> RankerTable:
    """Section 5.3.6's central claim: the four kinds of attack may stand for each other."""
    maps = {name: saliency_map(images, perturbed) for name, perturbed in kinds.items()}
    rows = []
    for name, perturbed in kinds.items():
        row: list[object] = [name]
        for other in kinds:
            turned = float(angle(perturbed - images, kinds[other] - images).nanmean())
            alike = float(rank_correlation(maps[name], maps[other]).nanmean())
            row.append("" if name == other else f"{alike:.2f}, {turned:.0f}°")
        rows.append(row)
    return RankerTable(
        ["", *kinds],
        rows,
        "Mean rank correlation of the saliency maps, and mean angle between the perturbations. P3 takes the map of "
        "any of "
        "the four for that of the first, “the unspoiled source of explanation” (section 5.3.6, Figure 46).",
    )


def regime_section(judged: Mapping[str, RankerQuality]) -> RankerSection:
    """How well each regime ranks and reconstructs (P3 sections 5.2.2 to 5.2.4)."""
    published = {"autoencoder-first": "± .2", "variational-first": "± .2", "simultaneous": "at most .05 (faces)"}
    rows = [
        [
            name,
            published.get(name, "not given"),
            f"{quality.mean_deviation:.3f}",
            f"{quality.order_accuracy:.1%}",
            f"{quality.reconstruction_error:.3f}",
        ]
        for name, quality in judged.items()
    ]
    constant = next(iter(judged.values())).baseline
    return RankerSection(
        "What does each regime learn?",
        "Networks of one architecture, trained by each regime on the same images and judged on those held out. P3 "
        "gives up "
        "frozen encoders, which “were never able to be more accurate than average ± 0.2”, for fine-tuning, mirroring "
        "and, "
        f"at last, training for both tasks at once. A constant 0.5 deviates by {constant:.3f}.",
        [RankerTable(["regime", "P3", "mean deviation", "right order", "reconstruction error"], rows)],
        {name: [quality.mean_deviation, quality.order_accuracy] for name, quality in judged.items()},
    )


def _distance_table(by_length: dict[int, AttackComparison], images: Tensor) -> RankerTable:
    """One step and many at several lengths of the attack, because the angle depends on the distance."""
    norm = torch.linalg.vector_norm(images.double().flatten(1), dim=1)
    rows = []
    for steps, compared in by_length.items():
        many, one = compared.second, compared.first
        share = (many.distance.double() / norm).mean()
        moved = ((result.score_after - result.score_before).abs().mean() for result in (many, one))
        rows.append(
            [
                steps,
                f"{share:.0%}",
                *(f"{float(m):.2f}" for m in moved),
                f"{compared.mean_angle:.1f}°",
                f"{compared.mean_correlation:.2f}",
            ]
        )
    return RankerTable(
        ["steps", "moved, of the image's norm", "ranking moved by", "by one step as long", "angle", "rank correlation"],
        rows,
        "One step and many, as far as each other: the first gradient is right for small changes, and the path bends as "
        "the ranking nears its target. P3's 14° and .75 belong to a distance that it does not give.",
    )


def maps_of_attack(steps: int) -> Explanation:
    """The maps for the sanity checks, as in P3: boundary attacks of many steps, and the change of the perception."""

    def explain(ranker: Ranker, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        perturbed = attack(ranker, a, b, 0.0, steps=steps).perturbed
        maps = {"attack": saliency_map(a, perturbed)}
        if ranker.reconstructs:
            maps["perception"] = perception_change(ranker, a, perturbed).saliency
        return maps

    return explain


def sanity_plot(check: SanityCheck) -> Figure:
    """P3 Figure 50: the rank correlation with the original maps after each stage; a dot for each pair."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(check.stages) + 1)
    for colour, marker, (name, values) in zip(("#1f6f8b", "#d95f02"), "os", check.correlation.items(), strict=False):
        whole = torch.cat([torch.ones_like(values[:1]), values])
        axes.plot(places, whole, marker, color=colour, alpha=0.16, markersize=4, markeredgewidth=0)
        axes.plot(places, whole.nanmean(dim=1), f"-{marker}", color=colour, label=f"{name} map", markersize=5)
    axes.axhline(CRITERION, color="#777", linewidth=1, linestyle="--")
    axes.text(len(check.stages) + 0.05, CRITERION + 0.02, "criterion", color="#777", fontsize=8, ha="right")
    axes.axhline(0, color="#bbb", linewidth=0.8)
    axes.set_xticks(places, ["as trained", *check.stages], rotation=18, ha="right", fontsize=8)
    axes.set_ylabel("rank correlation")
    axes.set_ylim(-0.6, 1.05)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return figure


def parameter_section(ranker: SiameseRanker, a: Tensor, b: Tensor, *, steps: int, seed: int = 0) -> RankerSection:
    """Cascading randomisation of the branch (P3 Figures 49 and 50)."""
    check = cascading_randomisation(ranker, a, b, maps_of_attack(steps), seed=seed)
    return RankerSection(
        "Do they depend on the model's parameters?",
        "The layers of tail and branch are re-initialised one after the other, from the last up to the first (P3 "
        "begins "
        "with the branch's last), and every pair "
        f"is explained again. {' '.join(check.verdict(name) for name in check.correlation)}",
        [
            *_stages(ranker, a, b, steps, seed),
            Plot.of(
                sanity_plot(check),
                "Spearman's rank correlation with the maps of the trained network; a dot for each "
                "pair, the line through their means (P3 Figure 50).",
            ),
        ],
        {name: check.mean(name).tolist() for name in check.correlation} | {"stages": list(check.stages)},
    )


@dataclass(frozen=True)
class Relabelled:
    """A network trained on shuffled labels: how well it learnt them, and how well it ranks by the true labels."""

    ranker: SiameseRanker
    on_its_own: RankerQuality
    on_true: RankerQuality


def _stages(ranker: SiameseRanker, a: Tensor, b: Tensor, steps: int, seed: int) -> list[Row]:
    """The maps of one pair at every stage (P3 Figure 49): perceptions after and before, and the two saliency maps."""
    one = slice(0, 1)
    rows: list[Row] = []

    def draw(randomised: Ranker, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        perturbed = attack(randomised, first, second, 0.0, steps=steps).perturbed
        maps = {"attack": saliency_map(first, perturbed)}
        tiles = [Tile(maps["attack"][0], "saliency of the attack")]
        if randomised.reconstructs:
            change = perception_change(randomised, first, perturbed)
            tiles = [
                Tile(change.after[0], "perception after"),
                Tile(change.before[0], "perception before"),
                Tile(change.saliency[0], "where it changed"),
                *tiles,
            ]
        rows.append(Row("", tiles))
        return maps

    check = cascading_randomisation(ranker, a[one], b[one], draw, seed=seed)
    names = ["as trained", *(f"then {stage}" for stage in check.stages)]
    return [Row(name, row.tiles) for name, row in zip(names, rows, strict=True)]


def label_section(
    ranker: SiameseRanker,
    relabelled: Mapping[str, Relabelled],
    a: Tensor,
    b: Tensor,
    *,
    steps: int,
) -> RankerSection:
    """Retraining on shuffled labels (P3 Figure 51 and equation 38), of one kind or several."""
    explain = maps_of_attack(steps)
    original = explain(ranker, a[:4], b[:4])
    tiles = [[Tile(a[i], "A"), Tile(original["attack"][i], "trained")] for i in range(min(4, len(a)))]
    table, learning, verdicts, numbers = [], [], [], {}
    for kind, other in relabelled.items():
        check = label_randomisation(ranker, other.ranker, a, b, explain, kind=f"shuffling the {kind}")
        maps = explain(other.ranker, a[:4], b[:4])["attack"]
        for i, row in enumerate(tiles):
            row.append(Tile(maps[i], f"shuffled {kind.split(',')[0]}"))
        for name, correlation in check.correlation.items():
            middle = float(check.mean(name)[0])
            first = float(correlation[0, 0])
            spread = f"{float(correlation.nan_to_num().min()):.2f} to {float(correlation.nan_to_num().max()):.2f}"
            published = ".1270" if name == "attack" else "not given"
            table.append([f"{name} map, {kind}", published, f"{first:.2f}", f"{middle:.2f}", spread])
            numbers[f"{name}, {kind}"] = correlation[0].tolist()
        verdicts += [check.verdict(name) for name in check.correlation]
        learning.append(
            [
                kind,
                f"{other.on_its_own.mean_deviation:.3f}",
                f"{other.on_its_own.baseline:.3f}",
                "yes" if other.on_its_own.learnt else "no",
                f"{other.on_true.mean_deviation:.3f}",
                f"{other.on_true.order_accuracy:.0%}",
            ]
        )
        numbers[f"learnt, {kind}"] = [other.on_its_own.mean_deviation, other.on_its_own.baseline]
    return RankerSection(
        "Do they depend on what it learnt?",
        "The same architecture is trained again by the same regime where labels mean nothing. P3 randomises the "
        "targets of "
        "the pairs, so that there is no order to learn; as a second kind, images get each other's attributes, and an "
        "order "
        f"can be learnt by heart. {' '.join(verdicts)}",
        [
            RankerTable(
                ["map, what was shuffled", "P3, one pair", "the first pair", "mean of the pairs", "from and to"],
                table,
                "Rank correlations with the maps of the trained network. P3's figure is that of a single pair, "
                "equation 38.",
            ),
            RankerTable(
                [
                    "what was shuffled",
                    "deviation from its own labels",
                    "of a constant 0.5",
                    "learnt them",
                    "deviation from the true ones",
                    "right order",
                ],
                learning,
                "A network that learnt nothing is no fair comparison by itself: its maps are those of a constant.",
            ),
            *(Row(f"pair {i + 1}", row) for i, row in enumerate(tiles)),
        ],
        numbers,
    )
