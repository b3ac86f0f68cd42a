"""Figures of a run as SVG, in the colours of the page they stand in: those of P1 and P2 that are about numbers.

    boxplots            P1 Figure 3; P2 Figures 4.2, 4.3, 4.7 a-i; of misclassified images alone, P2 Figure 5.3
    pairwise_bars       P1 Figure 4; P2 Figures 4.4, 4.7 j-l
    differences         P1 Figure 8; P2 Figure 5.1
    shuffled_histograms P2 Figure 5.2
    flip_curves         not in the papers: the share of changed predictions against epsilon
    removal_curves      not in the papers: P2 Algorithm 1's output, and those of deletion and insertion

The pictures of P1 Figure 5 and P2 Figure 4.6 are among the maps of the page; those of P1 Figures 6 and 7 are the
filter's. P1 Figure 9 and P2 Figure 4.5 show exceptions, see `exceptions.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas
from scipy import stats

from apem_fast.experiment.report.censoring import intervals
from apem_fast.experiment.report.drawing import (
    INK,
    METHODS,
    ON_BARS,
    TITLES,
    VERDICTS,
    inline_svg,
    page_style,
    panels,
    quiet,
)
from apem_fast.experiment.report.statistics import Differences, flip_curve
from apem_fast.results.plots import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Names = Mapping[str, str]
"""The explainers' names by key, in the order in which they are drawn."""

MOST_DOTS = 300
MOST_POINTS = 200


def _present(rows: pandas.DataFrame, column: str, order: Sequence[str]) -> list[str]:
    here = set(rows[column])
    return [value for value in order if value in here]


def _thousands(value: float, _: float) -> str:
    return f"{value:,.10g}".replace("-", "−")


# -- boxplots --------------------------------------------------------------------------------------------------------


def boxplots(rows: pandas.DataFrame, names: Names, stages: Sequence[str]) -> str:
    """Boxplots of score, epsilon_minus and epsilon_plus, by stage and explainer.

    With at most 300 images each is a dot too. A hollow dot is censored: its epsilon is only known to exceed
    max_epsilon.
    """
    keys, stages = _present(rows, "explainer", list(names)), _present(rows, "stage", stages)
    with page_style():
        figure, axes = panels(3, len(stages), 3.6, 2.1, sharex="col", sharey="row")
        for down, quantity in enumerate(TITLES):
            for across, stage in enumerate(stages):
                _boxes(axes[down][across], rows[rows["stage"] == stage], keys, quantity)
                if down == 0:
                    axes[down][across].set_title(stage, fontweight="bold")
            axes[down][0].set_ylabel(TITLES[quantity])
        for axis in axes[-1]:
            axis.set_xticks(
                range(len(keys)), [names[key] for key in keys], rotation=35, ha="right", rotation_mode="anchor"
            )
        return inline_svg(figure)


def _boxes(axis: Axes, rows: pandas.DataFrame, keys: list[str], quantity: str) -> None:
    colour = COLOURS[quantity]
    samples = [intervals(rows[rows["explainer"] == key], quantity) for key in keys]
    axis.boxplot(
        [sample.observed for sample in samples],
        positions=range(len(keys)),
        widths=0.55,
        showfliers=False,
        patch_artist=True,
        boxprops={"facecolor": colour + "33", "edgecolor": colour},
        whiskerprops={"color": colour},
        capprops={"color": colour},
        medianprops={"color": colour, "linewidth": 2},
    )
    for position, sample in enumerate(samples):
        if not 0 < len(sample) <= MOST_DOTS:
            continue
        places = position + (np.linspace(-0.16, 0.16, len(sample)) if len(sample) > 1 else np.zeros(1))
        values, exact = sample.observed, sample.exact
        axis.scatter(places[exact], values[exact], s=7, color=colour, alpha=0.7, linewidths=0)
        axis.scatter(places[~exact], values[~exact], s=11, facecolors="none", edgecolors=colour, linewidths=0.8)
    axis.set_yscale("symlog", linthresh=10)
    axis.yaxis.set_major_formatter(_thousands)
    if quantity == "score":
        axis.axhline(0, color=INK, linewidth=0.8, alpha=0.4)
    quiet(axis)


# -- comparisons -----------------------------------------------------------------------------------------------------


def pairwise_bars(panels_of: Mapping[str, Sequence[tuple[str, Mapping[str, float]]]]) -> str:
    """Stacked bars of how often the first of two is better than, equal to or worse than the second, or undecided.

    Args:
        panels_of: by panel title, (label of the bar, its shares by result), from the top.
    """
    longest = max(map(len, panels_of.values()))
    with page_style():
        figure, axes = panels(1, len(panels_of), 3.6, 0.24 * longest + 0.5)
        for axis, (title, bars) in zip(axes[0], panels_of.items()):
            places, left = np.arange(len(bars)), np.zeros(len(bars))
            for verdict, colour in VERDICTS.items():
                shares = np.array([one[verdict] for _, one in bars], np.float64)
                axis.barh(
                    places, shares, left=left, height=0.72, color=colour, label=verdict if axis is axes[0][0] else None
                )
                if verdict in ("better", "worse"):
                    for place in np.flatnonzero(shares >= 0.12):
                        axis.text(
                            left[place] + shares[place] / 2,
                            float(place),
                            f"{100 * shares[place]:.0f}",
                            ha="center",
                            va="center",
                            fontsize=7,
                            color=ON_BARS,
                        )
                left += shares
            axis.set_title(title, fontweight="bold")
            axis.set_yticks(places, [label for label, _ in bars], fontsize=7)
            axis.set_ylim(longest - 0.4, -0.6)
            axis.set_xlim(0, 1)
            axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
            axis.tick_params(axis="x", labelsize=7)
            quiet(axis, "x")
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return inline_svg(figure)


def differences(found: Mapping[str, Mapping[str, Differences]], first: str, second: str) -> str:
    """Histogram and Gaussian kernel density estimate (Scott's bandwidth) of the exact differences.

    There is a row for each choice of images, with its name, and a panel for each stage.
    """
    with page_style():
        figure, axes = panels(len(found), len(next(iter(found.values()))), 3.6, 2.0, sharex="col")
        for row, (title, by_stage) in zip(axes, found.items()):
            for axis, (stage, one) in zip(row, by_stage.items()):
                beside = np.concatenate([of_choice[stage].exact for of_choice in found.values()])
                _histogram(axis, one.exact, COLOURS["epsilon_plus"], beside)
            row[0].set_ylabel(title)
        for axis, stage in zip(axes[0], next(iter(found.values()))):
            axis.set_title(stage, fontweight="bold")
        for axis in axes[-1]:
            axis.set_xlabel(f"ε⁺ of {first} − ε⁺ of {second}")
        return inline_svg(figure)


def shuffled_histograms(rows: pandas.DataFrame, explainer: str, stages: Sequence[str]) -> str:
    """Histograms of the scores of an explainer's shuffled maps, with a panel for each stage."""
    with page_style():
        figure, axes = panels(1, len(stages), 3.6, 2.2, sharey="row")
        for axis, stage in zip(axes[0], stages):
            part = rows[(rows["stage"] == stage) & (rows["explainer"] == explainer)]
            part = part[part["shuffled_epsilon_plus"].notna()]
            _histogram(axis, intervals(part, "score", "shuffled_").observed, COLOURS["score"])
            axis.set_title(stage, fontweight="bold")
            axis.set_xlabel("score of the shuffled maps")
        axes[0][0].set_ylabel("images")
        return inline_svg(figure)


def _histogram(axis: Axes, values: np.ndarray, colour: str, beside: np.ndarray | None = None) -> None:
    """`beside`: all values of the panels that share the axis, so that they share the bins too."""
    if len(values):
        every = values if beside is None else beside
        edges = np.histogram_bin_edges(every, bins="auto" if len(every) >= 30 else 12)
        edges = np.linspace(edges[0], edges[-1], min(len(edges), 80))
        axis.hist(values, bins=edges.tolist(), color=colour + "55", edgecolor=colour, linewidth=0.6)
        if len(values) > 2 and np.ptp(values) > 0:
            x = np.linspace(edges[0], edges[-1], 200)
            axis.plot(
                x, stats.gaussian_kde(values)(x) * len(values) * (edges[1] - edges[0]), color=colour, linewidth=1.6
            )
    else:
        axis.text(0.5, 0.5, "no exact values", ha="center", va="center", transform=axis.transAxes, alpha=0.6)
        axis.tick_params(axis="y", left=False, labelleft=False)
    axis.axvline(0, color=INK, linewidth=0.8, alpha=0.5)
    axis.locator_params(axis="x", nbins=5)
    axis.xaxis.set_major_formatter(_thousands)
    axis.locator_params(axis="y", integer=True)
    quiet(axis)


# -- flips -----------------------------------------------------------------------------------------------------------


def removal_curves(
    rows: pandas.DataFrame, measures: Mapping[str, str], names: Names, stages: Sequence[str], baselines: Sequence[str]
) -> str:
    """The mean output of the network as features are replaced, with a row of panels for each measure.

    Args:
        measures: titles by the columns that hold the curves.
    """
    keys, stages = _present(rows, "explainer", list(names)), _present(rows, "stage", stages)
    with page_style():
        figure, axes = panels(len(measures), len(stages), 3.6, 2.3, sharex=True, sharey="row")
        methods = [key for key in keys if key not in baselines]
        for down, (column, title) in enumerate(measures.items()):
            for across, stage in enumerate(stages):
                axis = axes[down][across]
                for key in keys:
                    part = rows[(rows["stage"] == stage) & (rows["explainer"] == key)]
                    mean = np.mean(np.stack(part[column].to_list()), axis=0)
                    axis.plot(
                        np.linspace(0, 1, len(mean)),
                        mean,
                        color=METHODS[methods.index(key) % len(METHODS)] if key in methods else INK,
                        linestyle=(0, (1 + keys.index(key) % 3, 1.5)) if key in baselines else "-",
                        linewidth=1.0 if key in baselines else 1.5,
                        alpha=0.6 if key in baselines else 1.0,
                        label=names[key] if (across, down) == (0, 0) else None,
                    )
                axis.set_xlim(0, 1)
                axis.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
                quiet(axis, "both")
            axes[down][0].set_ylabel(title)
        for across, stage in enumerate(stages):
            axes[0][across].set_title(stage, fontweight="bold")
            axes[-1][across].set_xlabel("features replaced")
        figure.legend(loc="outside lower center", ncols=min(len(keys), 6), frameon=False)
        return inline_svg(figure)


def flip_curves(rows: pandas.DataFrame, names: Names, stages: Sequence[str], baselines: Sequence[str]) -> str:
    """The share of images whose prediction has changed up to each epsilon, along the relevance and the irrelevance."""
    keys, stages = _present(rows, "explainer", list(names)), _present(rows, "stage", stages)
    with page_style():
        figure, axes = panels(2, len(stages), 3.6, 2.3, sharex=True, sharey=True)
        methods = [key for key in keys if key not in baselines]
        for across, stage in enumerate(stages):
            for down, ray in enumerate(("minus", "plus")):
                axis = axes[down][across]
                for key in keys:
                    part = rows[(rows["stage"] == stage) & (rows["explainer"] == key)]
                    curve = flip_curve(part, ray)
                    shown = np.unique(np.linspace(0, len(curve.epsilon) - 1, MOST_POINTS).astype(int))
                    colour = METHODS[methods.index(key) % len(METHODS)] if key in methods else INK
                    dashes = (0, (1 + keys.index(key) % 3, 1.5)) if key in baselines else "-"
                    axis.step(
                        curve.epsilon[shown],
                        curve.share[shown],
                        where="post",
                        color=colour,
                        linestyle=dashes,
                        linewidth=1.0 if key in baselines else 1.5,
                        alpha=0.6 if key in baselines else 1.0,
                        label=names[key] if (across, down) == (0, 0) else None,
                    )
                axis.set_xscale("symlog", linthresh=10)
                axis.set_xlim(left=0)
                axis.xaxis.set_major_formatter(_thousands)
                axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
                quiet(axis, "both")
            axes[0][across].set_title(stage, fontweight="bold")
            axes[1][across].set_xlabel("ε")
        axes[0][0].set_ylabel("changed along the relevance")
        axes[1][0].set_ylabel("changed along the irrelevance")
        figure.legend(loc="outside lower center", ncols=min(len(keys), 6), frameon=False)
        return inline_svg(figure)
