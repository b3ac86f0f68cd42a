"""The command `apem-fast evaluate` as functions, for a model, images and explanations in a Python program."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

import numpy as np
from torch import Tensor, nn

from apem_fast.callers import said_by, sentence
from apem_fast.extras import extra

with extra("experiment", "evaluate"):
    import pandas

from apem_fast.experiment.inputs.given import GivenImages, GivenNetwork, device_of, given_inputs
from apem_fast.experiment.report.exceptions import exceptional_images
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.report.summary import results_with_images, summary, write_csv
from apem_fast.experiment.run.evaluate import HandedOver, RunProgress
from apem_fast.experiment.run.evaluate import evaluate as run
from apem_fast.experiment.run.options import GIVEN, RunOptions, usual_explainers, usual_stages
from apem_fast.experiment.run.store import RunStore
from apem_fast.explain import Explainer, explainer_from, from_callable, key_of
from apem_fast.explain.given import Given as GivenMethod
from apem_fast.explain.given import MapsInMemory
from apem_fast.options import EngineOptions, documented
from apem_fast.papers import PERCENTILE

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

Maps: TypeAlias = "Tensor | np.ndarray | Sequence[Tensor | np.ndarray] | Mapping[str, Tensor | np.ndarray]"
"""Maps of all images: (N, 1 or C, h, w) or (N, h, w), a sequence of single maps, or maps by the images' names."""
Method: TypeAlias = "str | Explainer | Callable[..., Tensor | np.ndarray] | Maps"
Images: TypeAlias = "Tensor | np.ndarray | Dataset[Any] | DataLoader[Any] | Iterable[Any]"


@documented()
@said_by("evaluate")
def evaluate(
    model: nn.Module,
    images: Images,
    explainers: Mapping[str, Method] | Sequence[str | Explainer] | None = None,
    *,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    classes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    output: str | Path | None = None,
    per_image: bool = False,
    progress: bool | Callable[[RunProgress], None] = False,
    stages: Sequence[str] | None = None,
    selection: str = "all",
    count: int | None = None,
    seed: int = 0,
    percentile: float | None = PERCENTILE,
    shuffles: int = 0,
    measures: Sequence[str] = (),
    block: int | None = None,
    pictures: int | None = 100,
    **options: Unpack[EngineOptions],
) -> pandas.DataFrame:
    """Compare explanations of a model's decisions on images, as `apem-fast evaluate` does, for your model and images.

    Each image is explained with each method, and every map is measured at each stage (APEM, P1 section III-A).

    Args:
        model: in evaluation mode; (N, C, H, W) -> logits (N, classes), or what `Classifier` reads as such.
        images: (N, C, H, W) as the model receives them; a data set, which is read image by image; or a DataLoader or
            another iterable of batches, which is read once and kept in memory. Items and batches are tensors, tuples
            (images, labels), or dictionaries with "pixel_values" or "image", and optionally "labels" or "label".
        explainers: by the name that the table shows, one of: a method of `apem_fast.explain`; its name with options,
            such as "smooth-grad:samples=50"; a function (model, images, labels) -> maps; or maps that exist already,
            (N, h, w), (N, 1, h, w) or (N, C, h, w). Also a sequence of methods and names. None takes gradient,
            smooth-grad and the baselines.
        labels: (N,) the true classes, -1 if unknown; None takes the labels that come with the images. If all are known,
            and at least four images are classified correctly and four are not, the table shows the two sets separately.
        mean, std: of the images' normalisation, a number or one for each channel: images * std + mean must be pixels in
            [0, 1]. They are needed for the stage "times-image" and to show the images.
        classes: the name of each class; None takes ImageNet's if there are 1,000, and numbers otherwise.
        names: of the images; None numbers them.
        output: a folder for the page index.html, table.csv, results.csv, maps and photographs. A run that was stopped
            is continued. None keeps nothing.
        per_image: return a row for each image, method and stage instead of the table.
        progress: True shows a bar; a function is called with each `RunProgress`.
        stages: of "3-channel", "1-channel", "times-image" and "times-grey"; None takes the first three, as the papers.
        selection, count, seed: which images: "all", "correct", "misclassified" or "both"; how many of them (for "both",
            of each kind), drawn with the seed; None takes all.
        percentile: clip each explanation's values at this percentile; None does not clip.
        shuffles: also measure so many shuffles of each map.
        measures: "selectivity", "continuity", "deletion", ..., which add a column each, or "all"; see docs/measures.md.
        block: how many images are in memory at once; None takes 32, or 512 on a GPU.
        pictures: keep the pictures of so many images, the first ones; None keeps all.
        options: see `apem_fast.options.Options`.

    Returns:
        The table, with a row for each method and stage (and set of images): see
        `apem_fast.experiment.report.summary.summary`. With `per_image`, the rows of results.csv.

    Raises:
        ValueError, TypeError: one sentence that names the argument, what was expected and what came.
    """
    with ExitStack() as stack:
        if output is None:
            output = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "run"
            pictures, kept = 0, False
        else:
            kept = True
        bar = stack.enter_context(ExitStack())
        told = _told(progress, bar)
        told(RunProgress(doing="reading images"))
        given_images = GivenImages(
            images, labels, lambda read: told(RunProgress(doing=f"reading images: {read:,} so far"))
        )
        network, image_set = given_inputs(model, given_images, classes=classes, mean=mean, std=std, names=names)
        methods = _methods(explainers, network)
        run_options = RunOptions(
            network=network.name,
            images=GIVEN,
            explainers=tuple(methods),
            selection=selection,
            count=count,
            seed=seed,
            percentile=percentile,
            shuffles=shuffles,
            measures=tuple(measures),
            device=str(device_of(model)),
            block=block,
            pictures=pictures,
            stages=usual_stages() if stages is None else tuple(stages),
            **options,
        )
        store = run(
            run_options,
            output,
            progress=told,
            given=HandedOver(network, image_set, methods),
            also_pictured=exceptional_images,
        )
        bar.close()
        table = summary(store)
        if kept:
            write_csv(store)
            if len(table):
                write_page(store)
        return results_with_images(store) if per_image else table


@said_by("report")
def report(
    explainers: Mapping[str, Method],
    model: nn.Module,
    images: Images,
    folder: str | Path,
    **options: Any,
) -> Path:
    """Measure maps that exist already, and write a page that shows them; returns the page's path.

    Args:
        explainers: maps by the name that the page shows, (N, h, w), (N, 1, h, w) or (N, C, h, w), signed or not, in any
            scale. Methods can be added, as in `evaluate`: `{"mine": maps, "random": "random"}`.
        model, images: see `evaluate`.
        folder: for the page, index.html, and all other files. A run that was stopped is continued.
        options: any other argument of `evaluate`.

    Raises:
        ValueError, TypeError: as `evaluate`; no map could be measured.
    """
    table = evaluate(model, images, explainers, output=folder, **options)
    if not len(table):
        flags = RunStore(folder).results()["flag"]
        raise ValueError(sentence(f"maps: none could be measured ({'; '.join(sorted(set(flags)))})"))
    return Path(folder) / "index.html"


def _told(progress: bool | Callable[[RunProgress], None], stack: ExitStack) -> Callable[[RunProgress], None]:
    if callable(progress):
        return progress
    if not progress:
        return lambda state: None
    from apem_fast.experiment.run.bar import ProgressBar

    return stack.enter_context(ProgressBar())


def _methods(
    explainers: Mapping[str, Method] | Sequence[str | Explainer] | None, network: GivenNetwork
) -> dict[str, Explainer]:
    """The explainers by their keys in a run's record."""
    if explainers is None:
        explainers = usual_explainers()
    if isinstance(explainers, str) or not isinstance(explainers, Mapping | Sequence):
        raise TypeError(
            sentence(
                f"explainers must be a dictionary of methods by their names (got {type(explainers).__name__}); "
                '{"mine": method} is one, and maps that exist may stand for a method'
            )
        )
    methods: dict[str, Explainer] = {}
    if isinstance(explainers, Mapping):
        for name, method in explainers.items():
            key, explainer = _named(str(name), method, network)
            methods[key] = explainer
    else:
        for method in explainers:
            explainer = explainer_from(method) if isinstance(method, str) else method
            if not isinstance(explainer, Explainer):
                raise TypeError(
                    sentence(
                        "explainers: in a sequence each must be a method of apem_fast.explain or its name; others need "
                        f"a name, as in {{'mine': function}} (got {type(method).__name__})"
                    )
                )
            key, explainer = _named(explainer.name, explainer, network)
            methods[key] = explainer
    return methods


def _named(name: str, method: Method, network: GivenNetwork) -> tuple[str, Explainer]:
    """A method's key, and the method. It keeps its own key if the program did not give it another name."""
    explainer: Explainer
    if isinstance(method, str | Explainer):
        explainer = explainer_from(method) if isinstance(method, str) else method
        try:
            what = key_of(explainer)
        except ValueError:  # a class or a function of the program
            what = f"{type(explainer).__module__}.{type(explainer).__qualname__} {_short_of(explainer.options)}".strip()
        else:
            if explainer.name == name:
                return what, explainer
    elif callable(method) and not isinstance(method, Tensor):
        explainer = from_callable(method, name=name)
        what = f"{getattr(method, '__module__', '')}.{getattr(method, '__qualname__', type(method).__qualname__)}"
    else:
        explainer = MapsInMemory(name, _maps_by_name(name, method, network))
        what = f"maps {explainer.digest}"
    return key_of(GivenMethod(name, what)), explainer


def _short_of(options: Mapping[str, Any]) -> str:
    """Options of any kind as short texts for a record; tensors and objects as the name of their type."""
    plain = {k: v if isinstance(v, str | int | float | bool | None) else type(v).__name__ for k, v in options.items()}
    text = ", ".join(f"{name}={value}" for name, value in plain.items())
    return text if len(text) <= 200 else hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _maps_by_name(name: str, maps: Any, network: GivenNetwork) -> dict[str, np.ndarray]:
    own = list(network.numbers)
    if isinstance(maps, Mapping):
        unknown = [one for one in maps if one not in network.numbers]
        if unknown:
            raise ValueError(sentence(f"explainers: {name} has a map of {unknown[0]!r}, and no image is called that"))
        return {one: _array(name, values) for one, values in maps.items()}
    if not isinstance(maps, Tensor | np.ndarray | list | tuple):
        raise TypeError(
            sentence(
                f"explainers: {name} must be a method, its name, a function or maps of the images "
                f"(got {type(maps).__name__})"
            )
        )
    if len(maps) != len(own):
        raise ValueError(
            sentence(f"explainers: {name} must have one map for each of {len(own)} images (got {len(maps)})")
        )
    return {one: _array(name, values) for one, values in zip(own, maps)}


def _array(name: str, values: Any) -> np.ndarray:
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(sentence(f"explainers: the maps of {name} must be numbers (got {array.dtype})"))
    return array
