"""Figures of a run as SVG, in the colours of the page they stand in."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas

from apem_fast.experiment.store import RunStore

INK = "#010203"  # stands for the page's text colour; no other element has it
COLOURS = {"score": "#5b6ee1", "epsilon_minus": "#d9822b", "epsilon_plus": "#2a9d8f"}
TITLES = {
    "score": "score = ε⁺ − ε⁻",
    "epsilon_minus": "ε⁻ along the relevance",
    "epsilon_plus": "ε⁺ along the irrelevance",
}


def boxplots(store: RunStore) -> str:
    """P1 figure 3 and P2 figure 4.7: box plots of score, epsilon_minus and epsilon_plus, by stage and explainer.

    Every image is a dot; a hollow dot is censored: its epsilon is only known to exceed max_epsilon.
    """
    import matplotlib
    from matplotlib.figure import Figure

    results = store.results()
    results = results[results["flag"] == ""]
    keys = [key for key in store.options.explainers if key in set(results["explainer"])]
    stages = [stage for stage in store.options.stages if stage in set(results["stage"])]
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "apem_fast",
        "font.family": "sans-serif",
        "font.size": 9,
        **{name: INK for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.6 * len(stages) + 0.9, 6.6), layout="constrained")
        axes = figure.subplots(3, len(stages), sharex="col", sharey="row", squeeze=False)
        for down, quantity in enumerate(TITLES):
            for across, stage in enumerate(stages):
                _panel(axes[down, across], results[results["stage"] == stage], keys, quantity)
                if down == 0:
                    axes[down, across].set_title(stage, fontweight="bold")
            axes[down, 0].set_ylabel(TITLES[quantity])
        names = [store.record["explainers"][key]["name"] for key in keys]
        for axis in axes[-1]:
            axis.set_xticks(range(len(keys)), names, rotation=35, ha="right", rotation_mode="anchor")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_a_page(buffer.getvalue())


def _for_a_page(svg: str) -> str:
    """Only the drawing: as wide as its place, in the page's text colour, without metadata."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest


def _panel(axis, results: pandas.DataFrame, keys: list[str], quantity: str) -> None:
    colour = COLOURS[quantity]
    samples = [results[results["explainer"] == key] for key in keys]
    axis.boxplot(
        [sample[quantity] for sample in samples],
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
        places = position + np.linspace(-0.16, 0.16, len(sample)) if len(sample) > 1 else np.array([position])
        flips = {
            "score": sample["flipped_minus"] & sample["flipped_plus"],
            "epsilon_minus": sample["flipped_minus"],
            "epsilon_plus": sample["flipped_plus"],
        }[quantity].to_numpy(bool)
        values = sample[quantity].to_numpy()
        axis.scatter(places[flips], values[flips], s=7, color=colour, alpha=0.7, linewidths=0)
        axis.scatter(places[~flips], values[~flips], s=11, facecolors="none", edgecolors=colour, linewidths=0.8)
    axis.set_yscale("symlog", linthresh=10)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if quantity == "score":
        axis.axhline(0, color=INK, linewidth=0.8, alpha=0.4)
    axis.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.spines["left"].set_alpha(0.4)
    axis.spines["bottom"].set_alpha(0.4)
