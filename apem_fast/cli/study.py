"""`apem-fast study`: the papers' whole protocol in one command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apem_fast.cli.common import STOPPED, Device, device_named, flag, options_of, refuse_given, user_errors, values_of
from apem_fast.experiment.run.options import RunOptions

if TYPE_CHECKING:
    from rich.console import Console

    from apem_fast.experiment.study import FinishedRun, Study


# Options that the papers leave open, or that change no result.
OF_RUN = ("ground_truth", "classes", "seed", "batch_size", "precision", "compile")


@options_of(RunOptions, *OF_RUN)
def study(
    context: typer.Context,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", help="Where the runs and their pages go; continued if there."),
    ],
    images: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="ILSVRC2012's validation images, as for evaluate.")
    ] = None,
    network: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="A network and the file of its weights; may be given several times.  [default: vgg16=vgg16.pth and "
            "resnet50=resnet50.pth]",
        ),
    ] = None,
    count: Annotated[int, typer.Option(metavar="N", min=1, help="Images of each set; the papers have 5,000.")] = 5000,
    shuffles: Annotated[int, typer.Option(metavar="N", min=0, help="Of each map; the papers have 10.")] = 10,
    quick: Annotated[
        bool,
        flag("--quick", help="A small study of the bundled network and photographs, with baselines, in a few minutes."),
    ] = False,
    check: Annotated[bool, flag("--check", help="Only say what is missing, and about how long it would take.")] = False,
    device: Device = "auto",
    **options: Any,
) -> None:
    """Repeat the papers' study: six methods, three stages, both sets of images, shuffles, the filter, each network.

    Says what is missing before anything is computed, predicts the time from a few images, runs each network, and
    writes reports with the papers' numbers and claims beside its own. The same command continues a study that was
    stopped. On many GPUs: torchrun --nproc-per-node N -m apem_fast study ...
    """
    from rich.console import Console

    from apem_fast.experiment.run.ranks import rank_of_process

    rank, ranks = rank_of_process()
    console = Console(width=None if sys.stdout.isatty() else 110, quiet=rank > 0)
    with user_errors("study"):
        from apem_fast.cli.console import ConsoleProgress
        from apem_fast.experiment.study import COMPARISON, Study

        on = device_named(device)
        if quick:
            own = (*OF_RUN, "images", "network", "count", "shuffles")
            refuse_given(context, own, "--quick, which brings its own network, images and options")
            chosen = Study.quick(on)
        else:
            if images is None:
                raise ValueError("--images is needed: the papers take ILSVRC2012's validation images; or try --quick")
            chosen = Study.of_papers(
                images=images,
                networks=_networks(network or ["vgg16=vgg16.pth", "resnet50=resnet50.pth"]),
                count=count,
                shuffles=shuffles,
                device=on,
                **values_of(RunOptions, options),
            )
        lacking = chosen.missing()
        if lacking:
            raise ValueError("\n  ".join(["this is missing, and nothing was computed:", *lacking]))
        try:
            if ranks == 1 and (check or not quick):
                _predict(chosen, console)
            if check:
                return
            with ConsoleProgress(console) as progress:
                finished = chosen.run(output, progress, first=rank == 0)
        except KeyboardInterrupt:
            console.print(f"Stopped. {output} keeps what is done; the same command goes on from there.", soft_wrap=True)
            raise typer.Exit(STOPPED) from None
        for one in finished:
            _show(one, console)
    if len(finished) > 1:
        console.print(f"The comparison: {output / COMPARISON}", highlight=False, soft_wrap=True)


def _show(run: FinishedRun, console: Console) -> None:
    from apem_fast.cli.console import audit_lines, filtered_line, flagged_lines, show_table
    from apem_fast.experiment.filter.maps import FOLDER_IN_RUN
    from apem_fast.experiment.report.summary import summary

    show_table(console, summary(run.store))
    lines = [*flagged_lines(run.store), *map(filtered_line, run.filtered)]
    if run.filtered:
        lines.append(f"Before and after: {run.store.folder / FOLDER_IN_RUN / 'filtered.png'}")
    if run.audit is not None:
        lines += audit_lines(run.audit)
        if run.audit.up_to is not None:
            lines.append(f"To scan rays of any length: apem-fast audit {run.store.folder} --rays {run.audit.rays}")
    for line in [*lines, f"The report: {run.page}"]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _networks(texts: list[str]) -> dict[str, str | None]:
    pairs = [text.partition("=") for text in texts]
    if any(not name for name, _, _ in pairs) or len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"--network must be NAME or NAME=FILE, each name once (got {', '.join(texts)})")
    return {name: file or None for name, _, file in pairs}


def _predict(chosen: Study, console: Console) -> None:
    console.print("Predicting the time from a few images ...", highlight=False)
    for name, seconds in chosen.predicted_seconds().items():
        console.print(f"{name}: about {_duration(seconds)} here", highlight=False)


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    if hours < 2:
        return f"{max(1, round(seconds / 60))} minutes"
    return f"{hours:,.0f} hours" if hours < 48 else f"{hours / 24:,.0f} days"
