"""`apem-fast evaluate`: a run, its table and its page. It imports what it needs only when it runs: help does not
wait."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from apem_fast.cli.common import STOPPED, device_named, user_errors


def evaluate(
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where results go. Give the folder of a stopped run to continue it.",
        ),
    ],
    network: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The network to explain: efficientnet-lite0, which comes with its ImageNet weights; a classification "
            "model of torchvision, such as resnet18, with --weights; or package.module:function, a function of yours "
            "that returns an nn.Module (224 pixels, ImageNet's mean and deviation) or an "
            "apem_fast.experiment.inputs.networks.Network.",
        ),
    ] = "efficientnet-lite0",
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The network's weights, as torch.save(model.state_dict(), FILE) writes them."
        ),
    ] = None,
    images: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="A folder with a folder of images for each class, named after the class, its index from 0 or its "
            "synset; a flat folder of images; or photographs, the bundled ones.",
        ),
    ] = "photographs",
    ground_truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the images of a flat folder show, such as ILSVRC2012's: lines NAME INDEX or NAME SYNSET, or the "
            "development kit's numbers with its meta.mat beside them. none: folders are no classes.",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The network's classes, a line each, in its order: synset, name, or both."),
    ] = None,
    selection: Annotated[
        str,
        typer.Option(metavar="NAME", help="Which images: all, those classified correct or misclassified, or both."),
    ] = "all",
    count: Annotated[
        int | None,
        typer.Option(metavar="N", help="Draw N images at random; N of each kind for both.  [default: all]"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="S", help="Of that draw, and of the shuffles.")] = 0,
    explainers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Explanations to compare, separated by commas, options after colons: "
            "gradient,smooth-grad:samples=50. May be given several times; commas and colons within brackets or quotes "
            "belong to an option's value. Known: gradient, smooth-grad, lrp, grad-cam, guided-backprop, "
            "guided-grad-cam, integrated-gradients, input-x-gradient, occlusion, rise, attention-rollout, "
            "attention-relevance, maps:folder=FOLDER, and the baselines random, uniform, edge, "
            "centered-gaussian; also Captum's, such as "
            "captum.attr.IntegratedGradients:n_steps=20, and functions of your own by their path.  [default: gradient, "
            "smooth-grad and the baselines]",
        ),
    ] = None,
    maps: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Maps that exist already, beside the computed ones: a .npy, .npz, .pt or .png file for each image, "
            "called as the image is, of what the network sees. May be given several times.",
        ),
    ] = None,
    stages: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What a map looks like when it is measured: 3-channel, 1-channel, times-image.  [default: all]",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Look only at the first N images, by name.  [default: all]")
    ] = None,
    max_epsilon: Annotated[
        float, typer.Option(metavar="E", help="Give up on a map when a perturbation of this size changes nothing.")
    ] = 4096.0,
    step: Annotated[float, typer.Option(metavar="E", help="Precision: every epsilon is a multiple of it.")] = 1.0,
    search: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="isolate: some seven probes a ray; fast, careful: fewer, more. exhaustive: every epsilon in turn, as "
            "the papers define it; very slow.",
        ),
    ] = "isolate",
    percentile: Annotated[
        float, typer.Option(metavar="P", help="Clip each explanation's values at this percentile.")
    ] = 99.0,
    shuffles: Annotated[
        int,
        typer.Option(
            metavar="N", help="Measure N shuffles of each map too, for scores normalised by them; the papers take 10."
        ),
    ] = 0,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; auto takes a GPU where there is one.")
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="The most images in one batch; lower it to save memory."),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="float32; or float16, tf32 or bfloat16, in which images are tried first. It changes no result.",
        ),
    ] = "float32",
    record: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Who decides margins too close to 0 to be sure of: float64, a copy of it, so that every machine "
            "finds the same; or float32, the network itself.",
        ),
    ] = "float64",
    compile: Annotated[bool, typer.Option("--compile", help="Run perturbed images through torch.compile.")] = False,
    block: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="How many images are in memory at once, and finished together.",
            show_default="32; 512 on a GPU",
        ),
    ] = None,
    measures: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Measure also selectivity (how fast the output falls as relevant features go) or continuity (how much "
            "a map changes where the image hardly does), for a column each.",
        ),
    ] = None,
    pictures: Annotated[
        int, typer.Option(metavar="N", help="Keep the photograph and the maps of the first N images as PNG.")
    ] = 100,
) -> None:
    """Compare explanations of a network's decisions on images.

    Explains each image with each method, measures every map (APEM: how much further the network can be pushed
    where the map says "irrelevant" than where it says "relevant"), prints a table, and writes CSV files, the maps
    and a page to open in a browser.

    A run that is stopped continues where it was when the same command is given again. On many processors or GPUs:
    torchrun --nproc-per-node N -m apem_fast evaluate ...
    """
    from rich.console import Console

    from apem_fast.experiment.run.ranks import rank_of_process

    rank, _ = rank_of_process()
    console = Console(width=None if sys.stdout.isatty() else 110, quiet=rank > 0)
    with user_errors("evaluate"):
        from apem_fast.cli.console import (
            ConsoleProgress,
            flagged_lines,
            left_out_lines,
            summary_table,
            totals_line,
        )
        from apem_fast.experiment.report.page import write_page
        from apem_fast.experiment.report.summary import summary, write_csv
        from apem_fast.experiment.run.evaluate import evaluate as run
        from apem_fast.experiment.run.options import RunOptions

        chosen = {
            "explainers": _with_maps(_names(explainers, "--explainers"), maps),
            "stages": _names(None if stages is None else [stages], "--stages"),
            "measures": _names(measures, "--measures"),
        }
        options = RunOptions(
            network=network,
            weights=_text(weights),
            images=images,
            ground_truth=_text(ground_truth),
            classes=_text(classes),
            limit=limit,
            selection=selection,
            count=count,
            seed=seed,
            shuffles=shuffles,
            pictures=pictures,
            max_epsilon=max_epsilon,
            step=step,
            search=search,
            percentile=percentile,
            device=device_named(device),
            batch_size=batch_size,
            precision=precision,
            record=record,
            compile=compile,
            block=block,
            **{name: names for name, names in chosen.items() if names is not None},
        )
        try:
            with ConsoleProgress(console) as progress:
                store = run(options, output, progress=progress)
        except KeyboardInterrupt:
            console.print(f"Stopped. {output} keeps what is done; the same command goes on from there.", soft_wrap=True)
            raise typer.Exit(STOPPED) from None
        if rank > 0:
            return
        write_csv(store)
        table = summary(store)
        page = write_page(store) if len(table) else None
    console.print()
    if page is not None:
        console.print(summary_table(table))
        console.print()
        console.print(totals_line(table), highlight=False)
    chosen_images = store.selection()
    notes = [chosen_images.note] if chosen_images and chosen_images.note else []
    for line in [*notes, *flagged_lines(store), *left_out_lines(store.left_out())]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if page is not None:
        console.print(f"The page with all maps: {page}", highlight=False, soft_wrap=True)


def _with_maps(explainers: tuple[str, ...] | None, maps: list[str] | None) -> tuple[str, ...] | None:
    """The explainers, the usual ones where none are named, and the folders of --maps."""
    from apem_fast.experiment.run.options import DEFAULT_EXPLAINERS

    if not maps:
        return explainers
    named = []
    for text in maps:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise ValueError(f"--maps must be NAME=FOLDER (got {text!r})")
        named.append(f"maps:folder={folder!r}:title={name!r}")
    return (*(DEFAULT_EXPLAINERS if explainers is None else explainers), *named)


def _names(texts: list[str] | None, option: str) -> tuple[str, ...] | None:
    from apem_fast.explain import split_outside_brackets

    if not texts:
        return None
    names = tuple(name.strip() for text in texts for name in split_outside_brackets(text, ",") if name.strip())
    if not names:
        raise ValueError(f"{option} must name at least one (got {', '.join(map(repr, texts))})")
    return names


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
