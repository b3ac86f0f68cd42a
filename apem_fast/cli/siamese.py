"""`apem-fast siamese train | explain | check`: trains a ranker, explains it, and checks the explanations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from apem_fast.cli import siamese_pair
from apem_fast.cli.common import Device, device_named, flag, user_errors
from apem_fast.cli.siamese_rankers import (
    Images,
    Regime,
    console,
    face_sections,
    facts_of,
    images_of,
    sections_of,
    split,
    train_ranker,
    trained_ranker,
)

app = typer.Typer(
    no_args_is_help=True,
    help="Networks that rank pairs of images: train one, explain it by adversarial attacks, check the explanations.",
)

STEPS = 100  # of attacks with automatic step lengths
OWN = "Pairs and networks of your own"


class Fusion(StrEnum):
    two = "two"
    stacked = "stacked"


class Attacked(StrEnum):
    first = "first"
    second = "second"


DEFAULT_RANKER = Path("runs/siamese/ranker.pt")
RankerFile = Annotated[Path, typer.Option("--ranker", help="The trained ranker.")]
Folder = Annotated[
    Path | None, typer.Option(help="Where MNIST (torchvision's), UTKFace or your images are. Digits need none.")
]
Attributes = Annotated[
    Path | None, typer.Option(help="For a folder: a CSV with a heading, of file names in it and a number for each.")
]
Grey = Annotated[bool, flag("--grey", help="Of a folder: learn at 28 pixels in grey, not at 112 in colour.")]


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

    The same command continues a training that was stopped.
    """
    with user_errors("siamese train"):
        from apem_fast.siamese import checkpoints, quality

        data = images_of(images, folder, attributes, grey).to(device_named(device))
        learnt, held_out = split(data)
        network, architecture = train_ranker(learnt, regime, size, steps, seed, ranker.with_suffix(".training.pt"))
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
    faces: Annotated[bool, flag(help="Also explain the pretrained face-age network on two faces.")] = True,
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
    logit: Annotated[bool, flag("--logit", help="With --fusion: it gives a logit.", rich_help_panel=OWN)] = False,
    pixels: Annotated[
        str | None,
        typer.Option(help="SIZE or HEIGHTxWIDTH that it takes. [default: the files']", rich_help_panel=OWN),
    ] = None,
    grey: Annotated[bool, flag("--grey", help="It takes one channel.", rich_help_panel=OWN)] = False,
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

    network, facts, _, held_out = trained_ranker(ranker, folder, attributes, device)
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
        tasks["faces"] = lambda: face_sections(network.device)
    path = page.write_page(
        output or ranker.with_name("explain.html"),
        f"What a ranking of {facts['images']} looks at",
        "A Siamese network ranks two images and draws what it sees in them; attacks on one of the two show why.",
        facts_of(facts, judged, held_out),
        sections_of(tasks),
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
    retrain: Annotated[bool, flag(help="Retrain on shuffled attributes (takes as long as training).")] = True,
    regimes: Annotated[bool, flag(help="Train by every regime, to compare them (as long as four times.)")] = False,
    seed: Annotated[int, typer.Option(help="Which pairs, and the random parameters.")] = 0,
    device: Device = "auto",
    attributes: Attributes = None,
) -> None:
    """Validate the explanations as P3 does, and set the figures beside the published ones."""
    with user_errors("siamese check"):
        import torch

        from apem_fast.siamese import quality
        from apem_fast.siamese.report import agreement, explanations, page

        network, facts, learnt, held_out = trained_ranker(ranker, folder, attributes, device_named(device))
        first, second = explanations.choose_pairs(held_out, pairs, seed)
        a, b = held_out.batch(first), held_out.batch(second)
        judged = quality.measure_quality(network, held_out)

        def labels() -> list[Any]:
            others = {}
            for kind, shuffled in (
                ("targets of the pairs, as in P3", learnt.with_shuffled_targets),
                ("attributes of the images", learnt.with_shuffled_values),
            ):
                data = shuffled(torch.Generator().manual_seed(seed))
                path = ranker.with_suffix(f".shuffled-{kind.split()[0]}-{seed}.pt")
                regime = Regime(facts["regime"])
                other, _ = train_ranker(data, regime, facts["size"], facts["steps"], facts["seed"], path)
                others[kind] = agreement.Relabelled(
                    other, quality.measure_quality(other, data), quality.measure_quality(other, held_out)
                )
            return [agreement.label_section(network, others, a, b, steps=STEPS)]

        def compared() -> list[Any]:
            judgements = {}
            for name in Regime:
                path = ranker.with_suffix(f".regime-{name.value}.pt")
                other, _ = train_ranker(learnt, name, facts["size"], facts["steps"], facts["seed"], path)
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
            facts_of(facts, judged, held_out),
            sections_of(tasks),
            banner=judged.warning,
        )
        console.print(f"written to {path} and {path.with_suffix('.json')}")
