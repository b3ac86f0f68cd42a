"""The images and rankers of `apem-fast siamese`: read, split, trained, taken up again; and what their pages share."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    import torch

    from apem_fast.siamese.networks import SiameseRanker
    from apem_fast.siamese.pairs import RankedImages
    from apem_fast.siamese.quality import RankerQuality
    from apem_fast.siamese.report.page import RankerSection

console = Console()

HELD_OUT, SPLIT_SEED = 0.2, 0


class Images(StrEnum):
    digits = "digits"
    mnist = "mnist"
    utkface = "utkface"
    folder = "folder"


class Regime(StrEnum):
    simultaneous = "simultaneous"
    autoencoder_first = "autoencoder-first"
    variational_first = "variational-first"
    fine_tuning = "fine-tuning"
    mirroring = "mirroring"


def images_of(images: Images, folder: Path | None, attributes: Path | None = None, grey: bool = False) -> RankedImages:
    from apem_fast.siamese import folders, pairs

    if images is Images.digits:
        return pairs.digits()
    if folder is None:
        raise ValueError(f"--folder must be given for {images.value} (got none)")
    if images is Images.folder:
        if attributes is None:
            raise ValueError("--attributes must be given for a folder: a CSV of file names and numbers (got none)")
        data = folders.table_of_images(folder, attributes, pixels=28 if grey else 112, channels=1 if grey else 3)
    else:
        data = pairs.mnist(folder) if images is Images.mnist else folders.utkface(folder)
    if data.skipped:
        names = ", ".join(data.skipped[:5]) + (", ..." if len(data.skipped) > 5 else "")
        console.print(f"skipped {len(data.skipped)} files without a readable name or image: {names}", highlight=False)
    return data


def split(data: RankedImages) -> tuple[RankedImages, RankedImages]:
    import torch

    return data.split(HELD_OUT, torch.Generator().manual_seed(SPLIT_SEED))


def train_ranker(
    data: RankedImages, regime: Regime, size: int, steps: int, seed: int, checkpoint: Path
) -> tuple[SiameseRanker, str]:
    from apem_fast.seeding import seeded
    from apem_fast.siamese import networks, regimes, training

    faces = data.images.shape[1] == 3
    architecture = "utkface" if faces else "mnist-mirroring" if regime is Regime.mirroring else "mnist"
    with seeded(seed):
        network = networks.RANKERS[architecture](size).to(data.images.device)
    options = training.TrainingOptions(
        steps=steps, images=64, learning_rate=5e-4 if faces else 2e-3, seed=seed, checkpoint=checkpoint
    )
    run: dict[Regime, Callable[..., object]] = {
        Regime.simultaneous: regimes.train_simultaneous,
        Regime.autoencoder_first: regimes.train_autoencoder_first,
        Regime.variational_first: partial(regimes.train_autoencoder_first, regularisation="variational"),
        Regime.fine_tuning: regimes.train_fine_tuned,
        Regime.mirroring: regimes.train_mirroring,
    }
    run[regime](network, data, options)
    return network, architecture


def trained_ranker(path: Path, folder: Path | None, attributes: Path | None, device: str) -> tuple[Any, ...]:
    """The ranker, facts about it, the images that it was trained on, as far as they are there, and the others."""
    from apem_fast.siamese import checkpoints

    if not path.exists():
        raise ValueError(
            f"--ranker must be a trained ranker; make one by apem-fast siamese train ({path} is not there)"
        )
    network, facts = checkpoints.load_ranker(path)
    missing = [name for name in ("images", "regime", "steps", "seed", "learnt") if name not in facts]
    if missing:
        raise ValueError(
            f"--ranker must be one that apem-fast siamese train made, which knows what it learnt from "
            f"(got {path} without {', '.join(missing)}); explain pairs of your own with --first and --second"
        )
    data = images_of(Images(facts["images"]), folder, attributes, facts.get("grey", False)).to(device)
    held_out = data.without(facts["learnt"])
    seen, trained_on = len(data) - len(held_out), sum(not key.startswith("name ") for key in facts["learnt"])
    if seen < trained_on:
        console.print(
            f"{trained_on - seen} of the {trained_on} images that the ranker learnt from are not in {folder}",
            highlight=False,
        )
    learnt = data.without(held_out.keys()) if seen else held_out
    return network.to(device), facts, learnt, held_out


def face_sections(device: torch.device) -> list[RankerSection]:
    import torch

    from apem_fast.siamese import faces
    from apem_fast.siamese.report import explanations

    try:
        ranker = faces.face_age_ranker().to(device)
        pair = torch.stack([faces.sample_face(name) for name in faces.SAMPLE_FACES]).to(device)
    except ValueError as error:
        console.print(f"left out: {error}", highlight=False)
        return []
    return explanations.face_sections(ranker, pair, faces.SAMPLE_FACES)


def sections_of(tasks: dict[str, Any]) -> list[Any]:
    from tqdm.auto import tqdm

    sections = []
    with tqdm(tasks.items(), leave=False) as bar:
        for name, task in bar:
            bar.set_description(name)
            sections += task()
    return sections


def facts_of(facts: dict[str, Any], judged: RankerQuality, held_out: RankedImages) -> list[tuple[str, str]]:
    return [
        ("images held out", str(len(held_out))),
        ("mean deviation", f"{judged.mean_deviation:.3f}"),
        ("that of a constant 0.5", f"{judged.baseline:.3f}"),
        ("right order", f"{judged.order_accuracy:.1%}"),
        ("reconstruction error", f"{judged.reconstruction_error:.3f}"),
        ("values in an embedding", str(facts["size"])),
        ("trained by", str(facts["regime"])),
    ]
