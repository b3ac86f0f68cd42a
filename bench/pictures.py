"""The documentation's pictures, from real runs: `python -m bench.pictures`, or `make pictures`; some minutes.

EfficientNet-Lite0 and the photographs that installed packages bring (the extra `demo`). Writes docs/pictures/*.png in
few colours, so that the repository stays small, and docs/gallery.md with the numbers that were seen.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import apem_fast as af
from apem_fast.experiment.inputs.photographs import bundled_photographs
from apem_fast.experiment.networks import Network, load_network
from apem_fast.margin_curve import RayView

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = DOCS / "pictures"
METHODS = {
    "Gradient": af.explain.Gradient(),
    "SmoothGrad": af.explain.SmoothGrad(samples=25, sigma=0.2),
    "Integrated Gradients": af.explain.IntegratedGradients(),
    "Grad-CAM": af.explain.GradCAM(),
    "Edge (baseline)": af.explain.Edge(),
    "Random (baseline)": af.explain.Random(),
}
SHOWN = ("cat", "rocket", "flower", "coffee")
MINUS, PLUS = "#c2410c", "#1d4ed8"
COLOURS = 256
CAT = "cat"


@dataclass(frozen=True)
class Run:
    """Everything the pictures show: the photographs and, by method, their maps and scores."""

    network: Network
    names: list[str]
    pixels: Tensor  # (N, 3, H, W) in [0, 1]
    images: Tensor  # as the network receives them
    maps: dict[str, Tensor]  # (N, 1, H, W) in [0, 1]
    results: dict[str, af.ApemResult]


def measured() -> Run:
    network = load_network("efficientnet-lite0")
    photographs = bundled_photographs()
    pixels = torch.stack([network.pixels(one.open()) for one in photographs])
    images = network.normalised(pixels)
    evaluator = af.Evaluator(network.model, images)
    maps = {name: af.relevance_map(method(network.model, images)) for name, method in METHODS.items()}
    return Run(network, [one.name for one in photographs], pixels, images, maps, evaluator.apem(maps))


def save(figure: Figure, name: str) -> None:
    """As a PNG of few colours."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, facecolor="white")
    plt.close(figure)
    picture = Image.open(buffer).convert("RGB").quantize(COLOURS, dither=Image.Dither.FLOYDSTEINBERG)
    PICTURES.mkdir(exist_ok=True)
    picture.save(PICTURES / f"{name}.png", optimize=True)
    print(f"{name}.png: {(PICTURES / f'{name}.png').stat().st_size / 1000:.0f} kB")


def as_picture(pixels: Tensor) -> np.ndarray:
    return pixels.clamp(0, 1).permute(1, 2, 0).numpy()


def show(axes: plt.Axes, picture: np.ndarray, title: str, below: str = "", **options: object) -> None:
    axes.imshow(picture, **options)
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(below, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def apem_in_pictures(run: Run) -> None:
    """The definition on one photograph: image, map, both perturbed images, and the margin along both rays."""
    i, maps, result = run.names.index(CAT), run.maps["Gradient"], run.results["Gradient"]
    minus, plus = float(result.epsilon_minus[i]), float(result.epsilon_plus[i])
    view = RayView(run.network.model, run.images[i : i + 1], maps[i : i + 1])
    greatest = 1.5 * max(minus, plus)
    epsilon = torch.linspace(0, greatest, 60, dtype=torch.float64)
    curve = view.margins(epsilon)
    label = run.network.categories[int(result.labels[i])]
    figure = plt.figure(figsize=(8.6, 4.9), layout="constrained")
    axes = figure.subplot_mosaic([["x", "map", "minus", "plus"], ["curve"] * 4], height_ratios=[1, 1.15])
    show(axes["x"], as_picture(run.pixels[i]), "1  the image x", f'predicted "{label}"')
    show(axes["map"], maps[i, 0].numpy(), "2  the map R", "of the gradient", cmap="magma")
    for name, value, irrelevance, title in (
        ("minus", minus, False, "3  added along R"),
        ("plus", plus, True, "4  added along 1 − R"),
    ):
        seen = view.perturbed(torch.tensor([value], dtype=torch.float64), irrelevance=irrelevance)
        with torch.no_grad():
            now = run.network.categories[int(run.network.model(seen).argmax())]
        sign = "+" if irrelevance else "−"
        change = run.network.pixels_of(seen[0]) - run.pixels[i]
        amplified = 0.5 + 0.5 * change / change.abs().quantile(0.99)
        show(axes[name], as_picture(amplified), title, f'ε{sign} = {value:g}: "{now}"')
    axes["curve"].axhline(0, color="black", linewidth=0.8)
    axes["curve"].plot(epsilon, curve.margin_minus[0], color=MINUS, label="along R")
    axes["curve"].plot(epsilon, curve.margin_plus[0], color=PLUS, label="along 1 − R")
    axes["curve"].plot([minus], [0], "o", color=MINUS)
    axes["curve"].plot([plus], [0], "o", color=PLUS)
    # Where neither curve passes: below on the left, above on the right.
    for value, colour, sign, ha, va in ((minus, MINUS, "−", "right", "top"), (plus, PLUS, "+", "left", "bottom")):
        at = (-4 if ha == "right" else 4, -4 if va == "top" else 4)
        axes["curve"].annotate(
            f"ε{sign} = {value:g}", (value, 0), at, textcoords="offset points", color=colour, ha=ha, va=va
        )
    axes["curve"].set(xlabel="ε, the l1 norm of what is added", ylabel="margin of the prediction")
    axes["curve"].set_title(
        f"5  the prediction changes where the margin falls below 0; score = ε+ − ε− = {plus - minus:g}", fontsize=9
    )
    axes["curve"].legend(frameon=False)
    save(figure, "apem")


def first_flip(run: Run) -> None:
    """A ray whose prediction comes back after the first flip, and what a bisection would have called ε."""
    best = None
    for name, maps in run.maps.items():
        view = RayView(run.network.model, run.images, maps)
        epsilon = torch.linspace(0, 2048, 33, dtype=torch.float64)
        curve = view.margins(epsilon)
        for sign, margins in (("−", curve.margin_minus), ("+", curve.margin_plus)):
            for i, margin in enumerate(margins.numpy()):
                flips = np.flatnonzero(margin < 0)
                back = (margin[flips[0] :] > 0).sum() if len(flips) else 0
                if best is None or back > best[0]:
                    best = (int(back), name, i, sign)
        if best and best[0] > 4:
            break
    assert best is not None
    _, name, i, sign = best
    result = run.results[name]
    value = float((result.epsilon_minus if sign == "−" else result.epsilon_plus)[i])
    view = RayView(run.network.model, run.images[i : i + 1], run.maps[name][i : i + 1])
    epsilon = torch.linspace(0, 2048, 257, dtype=torch.float64)
    curve = view.margins(epsilon)
    margin = (curve.margin_minus if sign == "−" else curve.margin_plus)[0].numpy()
    low, high = 0.0, 2048.0
    while high - low > 1:  # halving, as if there were one flip only
        middle = float(np.floor((low + high) / 2))
        there = view.margins(torch.tensor([middle], dtype=torch.float64))
        if float((there.margin_minus if sign == "−" else there.margin_plus)[0, 0]) < 0:
            high = middle
        else:
            low = middle
    figure, axes = plt.subplots(figsize=(8.6, 2.9), layout="constrained")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.plot(epsilon, margin, color="#444")
    axes.fill_between(epsilon, margin, 0, where=margin < 0, color=MINUS, alpha=0.25, label="prediction changed")
    axes.axvline(value, color=MINUS, linestyle="--", label=f"first flip, ε = {value:g}")
    axes.axvline(high, color="#888", linestyle=":", label=f"what halving the interval ends at, {high:g}")
    axes.set(xlabel="ε", ylabel="margin", title=f"{run.names[i]}, {name}, ray {sign}")
    axes.legend(frameon=False, fontsize=8)
    save(figure, "first-flip")


def gallery(run: Run) -> list[str]:
    """Photographs by methods, with scores; gives the table's lines."""
    rows = [run.names.index(name) for name in SHOWN if name in run.names]
    figure, grid = plt.subplots(
        len(rows), 1 + len(METHODS), figsize=(9.6, 1.55 * len(rows) + 0.3), layout="constrained"
    )
    for line, i in enumerate(rows):
        label = run.network.categories[int(run.results["Gradient"].labels[i])].split(",")[0]
        show(grid[line, 0], as_picture(run.pixels[i]), "" if line else "photograph", label)
        for column, name in enumerate(METHODS, 1):
            result = run.results[name]
            censored = not (bool(result.flipped_minus[i]) and bool(result.flipped_plus[i]))
            below = f"{float(result.score[i]):g}" + (" (censored)" if censored else "")
            show(grid[line, column], run.maps[name][i, 0].numpy(), "" if line else name, below, cmap="magma")
    save(figure, "gallery")
    lines = ["| method | median score | images above 0 | censored rays |", "|---|---|---|---|"]
    for name, result in run.results.items():
        censored = int((~result.flipped_minus).sum() + (~result.flipped_plus).sum())
        above = int((result.score > 0).sum())
        lines.append(f"| {name} | {result.median:.1f} | {above} of {len(run.names)} | {censored} |")
    return lines


def beside_deletion(run: Run) -> float:
    """APEM beside the area under the deletion curve, image by image; gives their rank correlation."""
    from scipy.stats import rankdata, spearmanr

    score, area = [], []
    for name, result in run.results.items():
        score.append(result.score.numpy())
        area.append(af.selectivity(run.network.model, run.images, run.maps[name], steps=20).area.numpy())
    # Ranks within an image: areas and scores of different images are not on one scale.
    by_score, by_area = rankdata(np.array(score), axis=0), rankdata(-np.array(area), axis=0)
    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for name, x, y in zip(run.results, by_score.mean(axis=1), by_area.mean(axis=1)):
        axes.plot(x, y, "o", color=MINUS if "baseline" in name else PLUS)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, 4), fontsize=8)
    axes.set(xlabel="mean rank by APEM (right is better)", ylabel="mean rank by deletion\n(up is better)")
    axes.margins(x=0.3, y=0.15)
    save(figure, "beside-deletion")
    return float(spearmanr(by_score.ravel(), by_area.ravel()).statistic)


PAGE = """# Gallery

Made by `make pictures` from a real run: EfficientNet-Lite0 and the photographs that installed packages bring, maps
summed over the colours, ε up to 4096 in steps of 1. Beneath each map stands its score, ε+ − ε−: high is good.

![Photographs, and six maps of each with their scores](pictures/gallery.png)

Over all {count} photographs and crops:

{table}

A *censored* ray is one on which nothing changed up to the greatest ε: [exactness](exactness.md#censoring) says what
becomes of it. Of {count} images none of this is a verdict on a method. What a page of a whole study looks like:
`make demo` writes one in some minutes.

![The page of a run](demo.png)

One photograph of it closely, with the network's margin along both rays:

![A photograph closely](closeup.png)

## The prediction comes back

![A ray that leaves the prediction, and comes back](pictures/first-flip.png)

Along some rays the prediction returns after the first flip, so that halving an interval may end at a flip that is not
the first. ε is the *first*: [exactness](exactness.md) says how it is found and how sure it is.

## Beside deletion

![Mean ranks of six methods by APEM and by deletion](pictures/beside-deletion.png)

Each method's mean rank among the six, by APEM and by the area under the deletion curve (`af.selectivity`); the
baselines in orange. Image by image the two ranks correlate with {correlation:.2f} (Spearman): they ask
[different questions](beside-other-measures.md).
"""


def main() -> None:
    warnings.filterwarnings("ignore", message="apem_fast: some rays")
    run = measured()
    apem_in_pictures(run)
    first_flip(run)
    table = "\n".join(gallery(run))
    page = PAGE.format(count=len(run.names), table=table, correlation=beside_deletion(run))
    (DOCS / "gallery.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
