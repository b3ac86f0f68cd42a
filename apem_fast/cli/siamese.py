"""`apem-fast siamese train | explain | check`: a ranker from nothing, its explanations, and whether to believe them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from apem_fast.cli.common import device_named, user_errors

app = typer.Typer(
    no_args_is_help=True,
    help="Networks that rank pairs of images: train one, explain it by adversarial attacks, check the explanations.",
)
console = Console()

HELD_OUT, SPLIT_SEED = 0.2, 0
STEPS, STEP_SIZE = 300, 20.0  # of the attacks on digits, whose rankings change by some hundredths per pixel value


class Images(StrEnum):
    digits = "digits"
    mnist = "mnist"
    utkface = "utkface"


class Regime(StrEnum):
    simultaneous = "simultaneous"
    autoencoder_first = "autoencoder-first"
    mirroring = "mirroring"


DEFAULT_RANKER = Path("runs/siamese/ranker.pt")
RankerFile = Annotated[Path, typer.Option("--ranker", help="The trained ranker.")]
Device = Annotated[
    str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; auto takes a GPU where there is one.")
]
Folder = Annotated[
    Path | None, typer.Option(help="Where MNIST (torchvision's) or the UTKFace images are. Digits need none.")
]


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
) -> None:
    """Train a ranker and say how good it is on images it has not seen.

    Stopped and started again with the same options, it goes on where it was.
    """
    with user_errors("siamese train"):
        from apem_fast.siamese import checkpoints, quality

        data = _images(images, folder).to(device_named(device))
        learnt, held_out = _split(data)
        network, architecture = _train(learnt, images, regime, size, steps, seed, ranker.with_suffix(".training.pt"))
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
        )
        console.print(
            f"mean deviation {judged.mean_deviation:.3f} on {len(held_out)} held-out images (P3 asks for .05)"
        )
        console.print(f"right order in {judged.order_accuracy:.1%} of the pairs without a tie")
        console.print(f"reconstruction error {judged.reconstruction_error:.3f} (root mean square, in pixel values)")
        console.print(f"written to {ranker}; see it: apem-fast siamese explain --ranker {ranker}")


@app.command()
def explain(
    ranker: RankerFile = DEFAULT_RANKER,
    folder: Folder = None,
    output: Annotated[Path | None, typer.Option(help="The page. [default: explain.html beside the ranker]")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs whose maps are drawn.")] = 5,
    faces: Annotated[bool, typer.Option(help="Also explain the pretrained face-age network on two faces.")] = True,
    seed: Annotated[int, typer.Option(help="Which pairs.")] = 0,
    device: Device = "auto",
) -> None:
    """Draw P3's figures for a trained ranker: perceptions, attacks, saliency maps, forces, recycling, two faces."""
    with user_errors("siamese explain"):
        from apem_fast.siamese import quality
        from apem_fast.siamese.report import explanations as e
        from apem_fast.siamese.report import page

        network, facts, held_out = _trained(ranker, folder, device_named(device))
        first, second = e.choose_pairs(held_out, max(pairs, 20), seed)
        attack = {"steps": STEPS, "step_size": STEP_SIZE}
        shown, some = (first[:pairs], second[:pairs]), (first[:20], second[:20])
        # One image above and one below the other's attribute would do; the most distant pair shows the longest way.
        far = int((held_out.values[first] - held_out.values[second]).argmax())
        longest = first[far : far + 1], second[far : far + 1]
        tasks = {
            "perceptions": lambda: [e.perception_section(network, held_out)],
            "progressions": lambda: [e.progression_section(network, held_out, *longest, steps=100, step_size=2.0)],
            "maps": lambda: [e.maps_section(network, held_out, *shown, **attack)],
            "forces": lambda: [e.advanced_section(network, held_out, *some, steps=STEPS, step_size=STEP_SIZE / 4)],
            "recycling": lambda: [
                e.recycling_section(network, held_out, *shown, steps=STEPS, step_size=STEP_SIZE / 10)
            ],
        }
        if faces:
            tasks["faces"] = lambda: _face_sections(network.device)
        sections = _run(tasks)
        judged = quality.measure_quality(network, held_out)
        path = page.write_page(
            output or ranker.with_name("explain.html"),
            f"What a ranking of {facts['images']} looks at",
            "A Siamese network ranks two images and draws what it sees in them; attacks on one of the two show why.",
            _facts(facts, judged, held_out),
            sections,
        )
        console.print(f"written to {path} and {path.with_suffix('.json')}")


@app.command()
def check(
    ranker: RankerFile = DEFAULT_RANKER,
    folder: Folder = None,
    output: Annotated[Path | None, typer.Option(help="The page. [default: check.html beside the ranker]")] = None,
    pairs: Annotated[int, typer.Option(min=2, help="Pairs to measure on; P3 takes 20.")] = 20,
    retrain: Annotated[bool, typer.Option(help="Retrain on shuffled attributes (takes as long as training).")] = True,
    seed: Annotated[int, typer.Option(help="Which pairs, and the random parameters.")] = 0,
    device: Device = "auto",
) -> None:
    """Validate the explanations as P3 does, and set the figures beside the published ones."""
    with user_errors("siamese check"):
        import torch

        from apem_fast.siamese import quality
        from apem_fast.siamese.report import agreement, explanations, page

        network, facts, held_out = _trained(ranker, folder, device_named(device))
        first, second = explanations.choose_pairs(held_out, pairs, seed)
        a, b = held_out.batch(first), held_out.batch(second)
        attack = {"steps": STEPS, "step_size": STEP_SIZE / 10}
        judged = quality.measure_quality(network, held_out)

        def labels() -> list:
            images, regime = Images(facts["images"]), Regime(facts["regime"])
            learnt = _split(_images(images, folder).to(network.device))[0]
            others = {}
            for kind, shuffled in (
                ("targets of the pairs, as in P3", learnt.with_shuffled_targets),
                ("attributes of the images", learnt.with_shuffled_values),
            ):
                data = shuffled(torch.Generator().manual_seed(seed))
                path = ranker.with_suffix(f".shuffled-{kind.split()[0]}-{seed}.pt")
                other, _ = _train(data, images, regime, facts["size"], facts["steps"], facts["seed"], path)
                others[kind] = agreement.Relabelled(
                    other, quality.measure_quality(other, data), quality.measure_quality(other, held_out)
                )
            return [agreement.label_section(network, others, a, b, **attack)]

        tasks = {
            "agreement": lambda: [agreement.agreement_section(network, judged, a, b, **attack)],
            "randomised parameters": lambda: [agreement.parameter_section(network, a, b, **attack, seed=seed)],
        }
        if retrain:
            tasks["randomised labels"] = labels
        sections = _run(tasks)
        path = page.write_page(
            output or ranker.with_name("check.html"),
            "Can these explanations be believed?",
            "The comparisons and sanity checks of P3 section 5.3, measured on this ranker.",
            _facts(facts, judged, held_out),
            sections,
        )
        console.print(f"written to {path} and {path.with_suffix('.json')}")


# -- what the commands share -------------------------------------------------------------------------------------


def _images(images: Images, folder: Path | None):
    from apem_fast.siamese import folders, pairs

    if images is Images.digits:
        return pairs.digits()
    if folder is None:
        raise ValueError(f"siamese: --folder must be given for {images.value} (got none)")
    data = pairs.mnist(folder) if images is Images.mnist else folders.utkface(folder)
    if data.skipped:
        names = ", ".join(data.skipped[:5]) + (", ..." if len(data.skipped) > 5 else "")
        console.print(f"skipped {len(data.skipped)} files without a readable name or image: {names}", highlight=False)
    return data


def _split(data):
    import torch

    return data.split(HELD_OUT, torch.Generator().manual_seed(SPLIT_SEED))


def _train(data, images: Images, regime: Regime, size: int, steps: int, seed: int, checkpoint: Path):
    from apem_fast.seeding import seeded
    from apem_fast.siamese import networks, regimes, training

    faces = images is Images.utkface
    architecture = "utkface" if faces else "mnist-mirroring" if regime is Regime.mirroring else "mnist"
    with seeded(seed):
        network = networks.RANKERS[architecture](size).to(data.images.device)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    options = training.TrainingOptions(
        steps=steps, images=64, learning_rate=5e-4 if faces else 2e-3, seed=seed, checkpoint=checkpoint
    )
    run = {
        Regime.simultaneous: regimes.train_simultaneous,
        Regime.autoencoder_first: regimes.train_autoencoder_first,
        Regime.mirroring: regimes.train_mirroring,
    }[regime]
    run(network, data, options)
    return network, architecture


def _trained(path: Path, folder: Path | None, device: str):
    """The ranker, facts about it, and the images that it was not trained on."""
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
    data = _images(Images(facts["images"]), folder).to(device)
    held_out = data.without(facts["learnt"])
    seen, trained_on = len(data) - len(held_out), sum(not key.startswith("name ") for key in facts["learnt"])
    if seen < trained_on:
        console.print(
            f"{trained_on - seen} of the {trained_on} images that the ranker learnt from are not in {folder}",
            highlight=False,
        )
    return network.to(device), facts, held_out


def _face_sections(device) -> list:
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


def _facts(facts: dict, judged, held_out) -> list[tuple[str, str]]:
    return [
        ("images held out", str(len(held_out))),
        ("mean deviation", f"{judged.mean_deviation:.3f}"),
        ("right order", f"{judged.order_accuracy:.1%}"),
        ("reconstruction error", f"{judged.reconstruction_error:.3f}"),
        ("values in an embedding", str(facts["size"])),
        ("trained by", str(facts["regime"])),
    ]
