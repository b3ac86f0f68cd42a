"""`apem-fast siamese explain` for pairs and networks of the user's own: from options to rankers, images and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from apem_fast.importing import module_named

if TYPE_CHECKING:
    from torch import Tensor

    from apem_fast.siamese.explaining import PairExplanation
    from apem_fast.siamese.networks import Ranker

MOST_PIXELS = 2048  # of a side, for images that are not resized: larger ones are seldom what a network takes


@dataclass(frozen=True)
class OwnPair:
    """The options of one's own pairs, as they were typed."""

    network: str | None
    ranker: Path
    first: Path | None
    second: Path | None
    folder: Path | None
    attributes: Path | None
    pairs: int
    output: Path
    low: float | None
    high: float | None
    distance: float | None
    cosine: float | None
    fusion: Literal["two", "stacked"] | None
    logit: bool
    pixels: str | None
    grey: bool
    mean: str | None
    std: str | None
    target: float
    value: float | None
    attack: Literal["first", "second"]
    region: Path | None
    steps: int
    step_size: str
    bounds: str
    seed: int
    device: str


def explain_own(own: OwnPair) -> list[tuple[str, PairExplanation, Path]]:
    """Explains one pair of files, or pairs of a folder with a table, and writes what it finds under `own.output`.

    Returns:
        For each pair its name, its explanation and its page.
    """
    import torch

    from apem_fast.siamese.explaining import explain_pair
    from apem_fast.siamese.folders import mask_file
    from apem_fast.siamese.report.pair import write_explanation

    size, channels = _size(own)
    images = _images(own, size, channels)
    mean, std = _numbers("--mean", own.mean), _numbers("--std", own.std)
    if (mean is None) != (std is None):
        raise ValueError("siamese explain: --mean and --std must be given together (got one of them)")
    ranker = _ranker(own, tuple(images[0][1].shape)).to(own.device).eval()
    done = []
    for number, (name, a, b) in enumerate(images):
        changed = a if own.attack == "first" else b
        region = None if own.region is None else mask_file(own.region, (changed.shape[1], changed.shape[2]))
        explanation = explain_pair(
            ranker,
            *(_normalised(image, mean, std).to(own.device) for image in (a, b)),
            target=own.target,
            value=own.value,
            attacked=own.attack,
            mean=mean,
            std=std,
            bounds=_bounds(own.bounds),
            region=None if region is None else region.to(torch.bool),
            steps=own.steps,
            step_size=_step_size(own.step_size),
        )
        folder = own.output / f"pair-{number + 1}" if len(images) > 1 else own.output
        done.append((name, explanation, write_explanation(explanation, folder)))
    if len(done) > 1:
        _write_table(own.output / "pairs.csv", done)
    return done


def _size(own: OwnPair) -> tuple[tuple[int, int] | None, int]:
    """(height, width), or None for the images' own, and the number of channels."""
    if own.network is None:
        from apem_fast.siamese.checkpoints import load_ranker

        architecture = load_ranker(own.ranker)[1]["architecture"]
        return ((112, 112), 3) if architecture == "utkface" else ((28, 28), 1)
    if own.pixels is None:
        return None, 1 if own.grey else 3
    sides = own.pixels.lower().split("x")
    if len(sides) > 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise ValueError(f"siamese explain: --pixels must be a number, or HEIGHTxWIDTH (got {own.pixels})")
    return (int(sides[0]), int(sides[-1])), 1 if own.grey else 3


def _images(own: OwnPair, size: tuple[int, int] | None, channels: int) -> list[tuple[str, Tensor, Tensor]]:
    from apem_fast.siamese.folders import image_file, table_of_images
    from apem_fast.siamese.report.explanations import choose_pairs

    if own.first is not None and own.second is not None:
        a, b = (image_file(path, size, channels) for path in (own.first, own.second))
        if size is None and max(*a.shape, *b.shape) > MOST_PIXELS:
            raise ValueError(
                f"siamese explain: --pixels must say at which size the network takes images of more than {MOST_PIXELS} "
                f"pixels a side (got {tuple(a.shape[1:])} and {tuple(b.shape[1:])})"
            )
        return [(f"{own.first.name} and {own.second.name}", a, b)]
    if own.first is not None or own.second is not None:
        raise ValueError("siamese explain: --first and --second must be given together (got one of them)")
    if own.folder is None or own.attributes is None:
        raise ValueError(
            "siamese explain: --network needs --first and --second, two images, or --folder and --attributes, a folder "
            "and a CSV of file names and numbers (got neither)"
        )
    if size is None or size[0] != size[1]:
        raise ValueError(f"siamese explain: --pixels must be a number for a folder (got {own.pixels})")
    data = table_of_images(own.folder, own.attributes, pixels=size[0], channels=channels)
    first, second = choose_pairs(data, own.pairs, own.seed)
    a, b = data.batch(first), data.batch(second)
    names = [f"{data.names[i]} and {data.names[j]}" for i, j in zip(first.tolist(), second.tolist(), strict=True)]
    return list(zip(names, a, b, strict=True))


def _ranker(own: OwnPair, shape: tuple[int, ...]) -> Ranker:
    from torch import nn

    from apem_fast.siamese.checkpoints import load_ranker
    from apem_fast.siamese.networks import Ranker
    from apem_fast.siamese.wrapped import FusionRanker, ScoreRanker, Verifier

    if own.network is None:
        return load_ranker(own.ranker)[0]
    made = _made(own.network)
    if isinstance(made, Ranker):
        return made
    if not isinstance(made, nn.Module):
        raise ValueError(  # noqa: TRY004 - of the command line's: a user's mistake is a ValueError there
            f"siamese explain: --network must return a torch.nn.Module or a Ranker (got {type(made).__name__})"
        )
    regressor = own.low is not None or own.high is not None
    kinds = [regressor, own.distance is not None, own.cosine is not None, own.fusion is not None]
    if sum(kinds) != 1:
        raise ValueError(
            "siamese explain: exactly one of these must say what --network gives: --low and --high for a regressor's "
            "range, --distance or --cosine for an embedding and the threshold of its verdict, --fusion for a network "
            f"that takes the pair at once (got {sum(kinds)} of them)"
        )
    if regressor:
        if own.low is None or own.high is None:
            raise ValueError("siamese explain: --low and --high must be given together (got one of them)")
        return ScoreRanker(made, own.low, own.high)
    if own.fusion is not None:
        return FusionRanker(made, shape, stacked=own.fusion == "stacked", logit=own.logit)
    return Verifier(made, distance=own.distance, cosine=own.cosine)


def _made(name: str) -> Any:
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ValueError(f"siamese explain: --network must be package.module:function (got {name})")
    try:
        make = getattr(module_named(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"siamese explain: --network {name} cannot be imported: {error}") from None
    return make()


def _numbers(option: str, text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"siamese explain: {option} must be numbers with commas, one a channel (got {text})") from None


def _normalised(image: Tensor, mean: list[float] | None, std: list[float] | None) -> Tensor:
    import torch

    if mean is None or std is None:
        return image
    for option, values in (("--mean", mean), ("--std", std)):
        if len(values) != len(image):
            raise ValueError(f"siamese explain: {option} must be {len(image)} numbers (got {len(values)})")
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _bounds(text: str) -> Any:
    if text in ("pixels", "none"):
        return None if text == "none" else text
    limits = _numbers("--bounds", text)
    if limits is None or len(limits) != 2:
        raise ValueError(f"siamese explain: --bounds must be pixels, none or LOW,HIGH (got {text})")
    return tuple(limits)


def _step_size(text: str) -> float | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"siamese explain: --step-size must be auto or a number (got {text})") from None


def _write_table(path: Path, done: list[tuple[str, PairExplanation, Path]]) -> None:
    import pandas

    tables = []
    for name, explanation, _ in done:
        table = explanation.result.to_dataframe()
        table.insert(0, "images", name)
        tables.append(table)
    pandas.concat(tables, ignore_index=True).rename_axis("pair").to_csv(path)
