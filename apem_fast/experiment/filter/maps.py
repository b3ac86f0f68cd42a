"""Filters explanations of photographs: from options to filtered maps, a table and pictures (P1 section IV-D).

Each photograph's result is a file of its own, written when it is done. So a filter that was stopped continues with the
next photograph, and results of different options are never mixed.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from apem_fast.extras import extra
from apem_fast.files.whole import write_whole

with extra("experiment", "the command filter"):
    import pandas

from apem_fast.experiment.filter.figures import before_and_after
from apem_fast.experiment.filter.filtered import FilteredPhotograph
from apem_fast.experiment.filter.options import FilterOptions
from apem_fast.experiment.inputs.network import Network
from apem_fast.experiment.inputs.networks import imported_by_network, load_network
from apem_fast.experiment.inputs.photographs import Photograph, bundled_photographs
from apem_fast.experiment.run.inputs import inputs_of
from apem_fast.experiment.run.store import RunStore, file_name_of
from apem_fast.explain import explainer_from, imported_by
from apem_fast.files.checksums import Damaged, checked_json, json_with_checksum
from apem_fast.filter.filtering import filter_relevance
from apem_fast.relevance import STAGES

FilterProgress = Callable[[str, int, int, int], None]
"""Called with (which map, levels settled, levels in all, probes so far)."""

FOLDER_IN_RUN = "filter"


def photographs_named(names: Sequence[str]) -> tuple[Photograph, ...]:
    """Bundled photographs by their names, image files by their paths."""
    bundled = {one.name: one for one in bundled_photographs()}
    chosen = []
    for name in names:
        path = Path(name)
        if name in bundled:
            chosen.append(bundled[name])
        elif path.is_file():
            chosen.append(Photograph(path.stem, path.stem, (), str(path), path))
        else:
            raise FileNotFoundError(f"{name} is neither an image file nor a bundled photograph ({', '.join(bundled)})")
    return tuple(chosen)


def filter_photographs(
    options: FilterOptions,
    photographs: Sequence[Photograph],
    folder: str | Path,
    progress: FilterProgress | None = None,
) -> list[FilteredPhotograph]:
    """Explains each photograph with each method and filters its map at each stage, unless `folder` has it already.

    Writes `options.json` first, and `NAME.EXPLAINER.STAGE.DIGEST.pt`, a `FilteredPhotograph`, when each is done. Last
    come `filtered.png`, the maps before and after, `filtered.csv`, a row for each map, and `filtered.json`, the same
    for a run's report. A folder can get more photographs, methods and stages later; the picture and the table show
    those of the last call.

    Raises:
        ValueError: `folder` holds maps that were filtered with other options.
    """
    network = load_network(options.network, options.device, options.weights)
    return _filter_all(options, network, photographs, Path(folder), progress)


def filter_run(
    options: FilterOptions,
    store: RunStore,
    names: Sequence[str],
    progress: FilterProgress | None = None,
    *,
    trust: bool = False,
) -> list[FilteredPhotograph]:
    """The same for images of a run, by name. The results go into the run's folder, and its report shows them.

    The maps are made again from the run's record in full precision, because a run only keeps pictures of them.

    Args:
        trust: whether to import code that the run names and that is not of this package, torchvision, timm or Captum.
            Without it, such a run is refused, since it may come from somebody else.

    Raises:
        ValueError: the run has no image of a name, or did not measure one of the explainers or stages.
    """
    for name, known in (("explainers", store.options.explainers), ("stages", store.options.stages)):
        for one in getattr(options, name):
            if one not in known:
                raise ValueError(f"{store.folder} has no {name.removesuffix('s')} {one} (it has {', '.join(known)})")
    images = list(store.images()["image"])
    for name in names:
        if name not in images:
            raise ValueError(f"{store.folder} has no image {name} (it has {', '.join(images[:20])})")
    of_explainers = [one for explainer in options.explainers for one in imported_by(explainer)]
    foreign = [*imported_by_network(store.options.network), *of_explainers]
    if foreign and not trust:
        raise ValueError(
            f"{store.folder} names code of somebody's own ({', '.join(foreign)}), which filtering would run; "
            "--trust runs it"
        )
    network, every = inputs_of(store.options, options.device)
    by_name = {one.name: one for one in every.photographs}
    chosen = [by_name[name] for name in names if name in by_name]
    return _filter_all(options, network, chosen, store.folder / FOLDER_IN_RUN, progress)


def _filter_all(
    options: FilterOptions,
    network: Network,
    photographs: Sequence[Photograph],
    folder: Path,
    progress: FilterProgress | None,
) -> list[FilteredPhotograph]:
    done = []
    with RunStore.claimed(folder):
        _require_options(folder, options)
        for photograph in photographs:
            for explainer in options.explainers:
                # Its content counts too: two files of the same name in different folders are two photographs.
                paths = {
                    stage: folder / f"{photograph.name}.{file_name_of(explainer)}.{stage}.{photograph.digest}.pt"
                    for stage in options.stages
                }
                missing = {stage: path for stage, path in paths.items() if not path.exists()}
                if missing:
                    _filter_stages(options, network, photograph, explainer, missing, progress)
                done += [_loaded(path) for path in paths.values()]
        _write_overview(folder, done)
    return done


def _loaded(path: Path) -> FilteredPhotograph:
    try:
        return FilteredPhotograph.load(path)
    except (Damaged, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove it to filter that map again") from None


def _write_overview(folder: Path, done: Sequence[FilteredPhotograph]) -> None:
    rows = [
        {"image": one.name, "explainer": one.explainer, "stage": one.stage, "prediction": one.prediction, **one.numbers}
        for one in done
    ]
    picture = io.BytesIO()
    before_and_after(done).savefig(picture, format="png", dpi=120)
    table = pandas.DataFrame(rows).to_csv(index=False)
    write_whole(folder / "filtered.csv", table.encode())
    write_whole(folder / "filtered.json", json_with_checksum({"table": table}))
    write_whole(folder / "filtered.png", picture.getvalue())


def _require_options(folder: Path, options: FilterOptions) -> None:
    record = json.loads(json.dumps(options.decisive()))  # as it is read again, with lists instead of tuples
    usual = json.loads(json.dumps(FilterOptions().decisive()))
    path = folder / "options.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = checked_json(path.read_bytes()) if path.exists() else record
        for name, value in record.items():
            held = there.get(name, usual[name])  # an option that is newer than the folder
            if held != value:
                raise ValueError(f"{folder} holds maps filtered with {name}={held}, not {value}; choose another folder")
        write_whole(path, json_with_checksum(record))
    except Damaged as error:
        raise ValueError(
            f"{path} is damaged ({error}), so it is not known how its maps were filtered; choose another folder"
        ) from None
    except OSError as error:
        raise ValueError(f"{folder} cannot be used for results ({error.strerror})") from None


def _filter_stages(
    options: FilterOptions,
    network: Network,
    photograph: Photograph,
    explainer: str,
    paths: Mapping[str, Path],
    progress: FilterProgress | None,
) -> None:
    """Filters one explanation of one photograph at each of these stages, and saves the results."""
    try:
        pixels = network.pixels(photograph.open())[None].to(options.device)
    except OSError as error:
        raise ValueError(f"{photograph.path} cannot be read as an image ({error})") from None
    images = network.normalised(pixels)
    method = explainer_from(explainer)
    attribution = method.for_images([photograph.name])(network.model, images)
    for stage, path in paths.items():

        def report(settled: int, total: int, probes: int, stage: str = stage) -> None:
            if progress is not None:
                progress(f"{photograph.name}, {explainer}, {stage}", settled, total, probes)

        relevance = STAGES[stage](attribution, pixels, options.percentile)
        result = filter_relevance(
            network.model,
            images,
            relevance,
            levels=options.levels,
            min_drop=options.min_drop,
            patience=options.patience,
            against=options.against,
            progress=report,
            **options.of_engine() | {"bounds": network.bounds(options.bounds)},
        )
        FilteredPhotograph.of(
            result,
            name=photograph.name,
            subject=photograph.subject,
            prediction=network.categories[int(result.labels[0])],
            explainer=explainer,
            method=method.name,
            stage=stage,
            pixels=pixels,
            relevance=relevance,
        ).save(path)
