"""`apem-fast siamese train | explain | check`: a ranker from nothing, its explanations, and whether to believe them."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from apem_fast.cli import siamese_pair
from apem_fast.cli.common import device_named, user_errors

if TYPE_CHECKING:
    import torch

    from apem_fast.siamese.networks import SiameseRanker
    from apem_fast.siamese.pairs import RankedImages
    from apem_fast.siamese.quality import RankerQuality
    from apem_fast.siamese.report.page import Section

app = typer.Typer(
    no_args_is_help=True,
    help="Networks that rank pairs of images: train one, explain it by adversarial attacks, check the explanations.",
)
console = Console()

HELD_OUT, SPLIT_SEED = 0.2, 0
STEPS = 100  # of attacks whose steps find their own length
OWN = "Pairs and networks of your own"


class Images(StrEnum):
    digits = "digits"
    mnist = "mnist"
    utkface = "utkface"
    folder = "folder"


class Fusion(StrEnum):
    two = "two"
    stacked = "stacked"


class Attacked(StrEnum):
    first = "first"
    second = "second"


class Regime(StrEnum):
    simultaneous = "simultaneous"
    autoencoder_first = "autoencoder-first"
    variational_first = "variational-first"
    fine_tuning = "fine-tuning"
    mirroring = "mirroring"


DEFAULT_RANKER = Path("runs/siamese/ranker.pt")
RankerFile = Annotated[Path, typer.Option("--ranker", help="The trained ranker.")]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; auto takes a GPU where there is one.")
]
Folder = Annotated[
    Path | None, typer.Option(help="Where MNIST (torchvision's), UTKFace or your images are. Digits need none.")
]
Attributes = Annotated[
    Path | None, typer.Option(help="For a folder: a CSV with a heading, of file names in it and a number for each.")
]
Grey = Annotated[bool, typer.Option("--grey", help="Of a folder: learn at 28 pixels in grey, not at 112 in colour.")]


@app.command()
def train(
    images: Annotated[Images, typer.Option(help="What to learn to rank.")] = Images.digits,
    folder: Folder = None,
    regime: Annotated[Regime, typer.Option(help="How ranking and reconstruction are learnt.")] = Regime.simultaneous,
    ranker: RankerFile = DEFAULT_RANKER,
    size: Annotated[int, typer.Option(min=1, help="Values in an embedding.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1200,
    seed: Annotated[int, typer.Option(help="Of the parameters and of every draw.")] = 0,
    device: Device = "auto",
    attributes: Attributes = None,
    grey: Grey = False,
) -> None:
    """Train a ranker and say how good it is on images it has not seen.

    Stopped and started again with the same options, it goes on where it was.
    """
    with user_errors("siamese train"):
        from apem_fast.siamese import checkpoints, quality

        data = _images(images, folder, attributes, grey).to(device_named(device))
        learnt, held_out = _split(data)
        network, architecture = _train(learnt, regime, size, steps, seed, ranker.with_suffix(".training.pt"))
        judged = quality.measure_quality(network, held_out)
        checkpoints.save_ranker(
            ranker,
            network,
            architecture,
            size,
            images=images.value,
            regime=regime.value,
            steps=steps,
            seed=seed,
            mean_deviation=judged.mean_deviation,
            learnt=list(learnt.keys()),
            grey=grey,
        )
        console.print(
            f"mean deviation {judged.mean_deviation:.3f} on {len(held_out)} held-out images (P3 asks for .05; a "
            f"constant "
            f"0.5 has {judged.baseline:.3f})"
        )
        if judged.warning:
            console.print(judged.warning, highlight=False)
        console.print(f"right order in {judged.order_accuracy:.1%} of the pairs without a tie")
        console.print(f"reconstruction error {judged.reconstruction_error:.3f} (root mean square, in pixel values)")
        console.print(f"written to {ranker}; see it: apem-fast siamese explain --ranker {ranker}")


@app.command()
def explain(
    ranker: RankerFile = DEFAULT_RANKER,
    folder: Folder = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The page; for pairs of your own a folder. [default: beside the ranker; siamese-pair]"),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs whose maps are drawn.")] = 5,
    faces: Annotated[bool, typer.Option(help="Also explain the pretrained face-age network on two faces.")] = True,
    seed: Annotated[int, typer.Option(help="Which pairs.")] = 0,
    device: Device = "auto",
    attributes: Attributes = None,
    first: Annotated[Path | None, typer.Option(help="An image of your own ...", rich_help_panel=OWN)] = None,
    second: Annotated[Path | None, typer.Option(help="... and another.", rich_help_panel=OWN)] = None,
    network: Annotated[
        str | None,
        typer.Option(
            help="package.module:function, a function of yours that returns a network; else --ranker.",
            rich_help_panel=OWN,
        ),
    ] = None,
    low: Annotated[float | None, typer.Option(help="It predicts a number: the least ...", rich_help_panel=OWN)] = None,
    high: Annotated[float | None, typer.Option(help="... and the greatest.", rich_help_panel=OWN)] = None,
    distance: Annotated[
        float | None,
        typer.Option(help="It embeds one image: the distance at which the verdict changes.", rich_help_panel=OWN),
    ] = None,
    cosine: Annotated[float | None, typer.Option(help="Or the cosine at which it does.", rich_help_panel=OWN)] = None,
    fusion: Annotated[
        Fusion | None,
        typer.Option(help="It takes the pair at once: as two arguments, or stacked.", rich_help_panel=OWN),
    ] = None,
    logit: Annotated[
        bool, typer.Option("--logit", help="With --fusion: it gives a logit.", rich_help_panel=OWN)
    ] = False,
    pixels: Annotated[
        str | None,
        typer.Option(help="SIZE or HEIGHTxWIDTH that it takes. [default: the files']", rich_help_panel=OWN),
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="It takes one channel.", rich_help_panel=OWN)] = False,
    mean: Annotated[
        str | None, typer.Option(help="It takes (pixels - mean) / std: R,G,B of each.", rich_help_panel=OWN)
    ] = None,
    std: Annotated[str | None, typer.Option(help="See --mean.", rich_help_panel=OWN)] = None,
    target: Annotated[
        float, typer.Option(min=0, max=1, help="The ranking to reach; 0.5 is equal.", rich_help_panel=OWN)
    ] = 0.5,
    value: Annotated[
        float | None,
        typer.Option(help="Or the number that a regressor is to give, in its units.", rich_help_panel=OWN),
    ] = None,
    attack: Annotated[Attacked, typer.Option(help="The image that changes.", rich_help_panel=OWN)] = Attacked.first,
    region: Annotated[
        Path | None, typer.Option(help="An image, white where that one may change.", rich_help_panel=OWN)
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="At most so many.", rich_help_panel=OWN)] = 100,
    step_size: Annotated[
        str, typer.Option(help="auto, or per unit of the loss's gradient.", rich_help_panel=OWN)
    ] = "auto",
    bounds: Annotated[
        str, typer.Option(help="pixels, none, or LOW,HIGH in the network's space.", rich_help_panel=OWN)
    ] = "pixels",
) -> None:
    """Draw P3's figures for a trained ranker, or explain pairs and networks of your own.

    A trained ranker gets a page of perceptions, attacks, saliency maps, forces, recycling and two faces. With --first
    and --second, or --network, a pair of your own gets a page, the path of the attack as CSV, and every picture as PNG:

    apem-fast siamese explain --network mine:age_network --low 0 --high 100 --first a.jpg --second b.jpg --value 30
    """
    with user_errors("siamese explain"):
        if network is not None or first is not None or second is not None:
            own = siamese_pair.OwnPair(
                network,
                ranker,
                first,
                second,
                folder,
                attributes,
                pairs,
                output or Path("siamese-pair"),
                low,
                high,
                distance,
                cosine,
                None if fusion is None else fusion.value,
                logit,
                pixels,
                grey,
                mean,
                std,
                target,
                value,
                attack.value,
                region,
                steps,
                step_size,
                bounds,
                seed,
                device_named(device),
            )
            for name, explanation, page in siamese_pair.explain_own(own):
                console.print(f"{name}: {explanation}", highlight=False)
                console.print(f"written to {page}, with path.csv and the pictures", highlight=False)
            return
        _explain_ranker(ranker, folder, attributes, output, pairs, faces, seed, device_named(device))


def _explain_ranker(
    ranker: Path,
    folder: Path | None,
    attributes: Path | None,
    output: Path | None,
    pairs: int,
    faces: bool,
    seed: int,
    device: str,
) -> None:
    from apem_fast.siamese import quality
    from apem_fast.siamese.report import explanations as e
    from apem_fast.siamese.report import page, published

    network, facts, _, held_out = _trained(ranker, folder, attributes, device)
    judged = quality.measure_quality(network, held_out)
    first, second = e.choose_pairs(held_out, max(pairs, 20), seed)
    shown, some = (first[:pairs], second[:pairs]), (first[:20], second[:20])
    # One image above and one below the other's attribute would do; the most distant pair shows the longest way.
    far = int((held_out.values[first] - held_out.values[second]).argmax())
    longest = first[far : far + 1], second[far : far + 1]
    tasks = {
        "perceptions": lambda: [e.perception_section(network, held_out)],
        "targets": lambda: [published.target_section(network, held_out)],
        "progressions": lambda: [e.progression_section(network, held_out, *longest, steps=STEPS)],
        "maps": lambda: [e.maps_section(network, held_out, *shown, steps=STEPS)],
        "boundary": lambda: [published.boundary_section(network, held_out, *shown)],
        "one and many steps": lambda: [published.one_and_many_section(network, held_out, *longest, steps=STEPS)],
        "forces": lambda: [e.advanced_section(network, held_out, *some, steps=3 * STEPS)],
        "recycling": lambda: [e.recycling_section(network, held_out, *shown, steps=STEPS)],
    }
    if faces:
        tasks["faces"] = lambda: _face_sections(network.device)
    path = page.write_page(
        output or ranker.with_name("explain.html"),
        f"What a ranking of {facts['images']} looks at",
        "A Siamese network ranks two images and draws what it sees in them; attacks on one of the two show why.",
        _facts(facts, judged, held_out),
        _run(tasks),
        banner=judged.warning,
    )
    if judged.warning:
        console.print(judged.warning, highlight=False)
    console.print(f"written to {path} and {path.with_suffix('.json')}")


@app.command()
def check(
    ranker: RankerFile = DEFAULT_RANKER,
    folder: Folder = None,
    output: Annotated[Path | None, typer.Option(help="The page. [default: check.html beside the ranker]")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs to measure on; P3 takes 20.")] = 20,
    retrain: Annotated[bool, typer.Option(help="Retrain on shuffled attributes (takes as long as training).")] = True,
    regimes: Annotated[
        bool, typer.Option(help="Train by every regime, to compare them (as long as four times.)")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which pairs, and the random parameters.")] = 0,
    device: Device = "auto",
    attributes: Attributes = None,
) -> None:
    """Validate the explanations as P3 does, and set the figures beside the published ones."""
    with user_errors("siamese check"):
        import torch

        from apem_fast.siamese import quality
        from apem_fast.siamese.report import agreement, explanations, page

        network, facts, learnt, held_out = _trained(ranker, folder, attributes, device_named(device))
        first, second = explanations.choose_pairs(held_out, pairs, seed)
        a, b = held_out.batch(first), held_out.batch(second)
        judged = quality.measure_quality(network, held_out)

        def labels() -> list:
            others = {}
            for kind, shuffled in (
                ("targets of the pairs, as in P3", learnt.with_shuffled_targets),
                ("attributes of the images", learnt.with_shuffled_values),
            ):
                data = shuffled(torch.Generator().manual_seed(seed))
                path = ranker.with_suffix(f".shuffled-{kind.split()[0]}-{seed}.pt")
                regime = Regime(facts["regime"])
                other, _ = _train(data, regime, facts["size"], facts["steps"], facts["seed"], path)
                others[kind] = agreement.Relabelled(
                    other, quality.measure_quality(other, data), quality.measure_quality(other, held_out)
                )
            return [agreement.label_section(network, others, a, b, steps=STEPS)]

        def compared() -> list:
            judgements = {}
            for name in Regime:
                path = ranker.with_suffix(f".regime-{name.value}.pt")
                other, _ = _train(learnt, name, facts["size"], facts["steps"], facts["seed"], path)
                judgements[name.value] = quality.measure_quality(other, held_out)
            return [agreement.regime_section(judgements)]

        tasks = {
            "agreement": lambda: [agreement.agreement_section(network, judged, a, b, steps=STEPS)],
            "randomised parameters": lambda: [agreement.parameter_section(network, a, b, steps=STEPS, seed=seed)],
        }
        if retrain:
            tasks["randomised labels"] = labels
        if regimes:
            tasks["regimes"] = compared
        path = page.write_page(
            output or ranker.with_name("check.html"),
            "Can these explanations be believed?",
            "The comparisons and sanity checks of P3 section 5.3, measured on this ranker.",
            _facts(facts, judged, held_out),
            _run(tasks),
            banner=judged.warning,
        )
        console.print(f"written to {path} and {path.with_suffix('.json')}")


# -- what the commands share -------------------------------------------------------------------------------------


def _images(images: Images, folder: Path | None, attributes: Path | None = None, grey: bool = False) -> RankedImages:
    from apem_fast.siamese import folders, pairs

    if images is Images.digits:
        return pairs.digits()
    if folder is None:
        raise ValueError(f"siamese: --folder must be given for {images.value} (got none)")
    if images is Images.folder:
        if attributes is None:
            raise ValueError(
                "siamese: --attributes must be given for a folder: a CSV of file names and numbers (got none)"
            )
        data = folders.table_of_images(folder, attributes, pixels=28 if grey else 112, channels=1 if grey else 3)
    else:
        data = pairs.mnist(folder) if images is Images.mnist else folders.utkface(folder)
    if data.skipped:
        names = ", ".join(data.skipped[:5]) + (", ..." if len(data.skipped) > 5 else "")
        console.print(f"skipped {len(data.skipped)} files without a readable name or image: {names}", highlight=False)
    return data


def _split(data: RankedImages) -> tuple[RankedImages, RankedImages]:
    import torch

    return data.split(HELD_OUT, torch.Generator().manual_seed(SPLIT_SEED))


def _train(
    data: RankedImages, regime: Regime, size: int, steps: int, seed: int, checkpoint: Path
) -> tuple[SiameseRanker, str]:
    from apem_fast.seeding import seeded
    from apem_fast.siamese import networks, regimes, training

    faces = data.images.shape[1] == 3
    architecture = "utkface" if faces else "mnist-mirroring" if regime is Regime.mirroring else "mnist"
    with seeded(seed):
        network = networks.RANKERS[architecture](size).to(data.images.device)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
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


def _trained(path: Path, folder: Path | None, attributes: Path | None, device: str) -> tuple[Any, ...]:
    """The ranker, facts about it, the images that it was trained on, as far as they are there, and the others."""
    from apem_fast.siamese import checkpoints

    if not path.exists():
        raise ValueError(
            f"siamese: --ranker must be a trained ranker; make one by apem-fast siamese train (got {path})"
        )
    network, facts = checkpoints.load_ranker(path)
    missing = [name for name in ("images", "regime", "steps", "seed", "learnt") if name not in facts]
    if missing:
        raise ValueError(
            f"siamese: --ranker must be one that apem-fast siamese train made, which knows what it learnt from "
            f"(got {path} without {', '.join(missing)}); explain pairs of your own with --first and --second"
        )
    data = _images(Images(facts["images"]), folder, attributes, facts.get("grey", False)).to(device)
    held_out = data.without(facts["learnt"])
    seen, trained_on = len(data) - len(held_out), sum(not key.startswith("name ") for key in facts["learnt"])
    if seen < trained_on:
        console.print(
            f"{trained_on - seen} of the {trained_on} images that the ranker learnt from are not in {folder}",
            highlight=False,
        )
    learnt = data.without(held_out.keys()) if seen else held_out
    return network.to(device), facts, learnt, held_out


def _face_sections(device: torch.device) -> list[Section]:
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


def _run(tasks: dict) -> list:
    from tqdm.auto import tqdm

    sections = []
    with tqdm(tasks.items(), leave=False) as bar:
        for name, task in bar:
            bar.set_description(name)
            sections += task()
    return sections


def _facts(facts: dict[str, Any], judged: RankerQuality, held_out: RankedImages) -> list[tuple[str, str]]:
    return [
        ("images held out", str(len(held_out))),
        ("mean deviation", f"{judged.mean_deviation:.3f}"),
        ("that of a constant 0.5", f"{judged.baseline:.3f}"),
        ("right order", f"{judged.order_accuracy:.1%}"),
        ("reconstruction error", f"{judged.reconstruction_error:.3f}"),
        ("values in an embedding", str(facts["size"])),
        ("trained by", str(facts["regime"])),
    ]
