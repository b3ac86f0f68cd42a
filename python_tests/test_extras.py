"""With torch and numpy alone the metric runs, and whatever needs more is refused in a sentence with its extra."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from apem_fast.extras import EXTRAS, MissingExtra, extra, require

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# Whatever any extra brings is not there.
BLOCKED = f"""
import sys

BLOCKED = {sorted({name for modules in EXTRAS.values() for name in modules} | {"torchvision", "sklearn", "timm"})!r}

class Without:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Without, sys.meta_path)
"""

METRIC = """
import torch
import apem_fast as af

class Network(torch.nn.Module):
    def forward(self, images):
        return self.layer(images.mean(dim=(2, 3)))

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(3, 5)

model = Network().eval()
images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
maps = af.relevance_map(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
options = dict(max_epsilon=400.0, step=0.5)
result = af.apem(model, images, maps, **options)
assert bool(result.flipped_minus.any())
assert len(af.apem_norm(model, images, maps, shuffles=2, **options).score) == 2
assert len(af.filter_relevance(model, images, maps, levels=3, **options).score_after) == 2
assert af.minimum_epsilon(model, images, torch.ones_like(images), **options).epsilon.shape == (2,)
assert af.selectivity(model, images, maps, steps=4).area.shape == (2,)
from apem_fast import audit
from apem_fast.margin_curve import margin_curve
margin_curve(model, images, maps, torch.ones(1))
assert not (set(sys.modules) & set(BLOCKED))
explainer = af.explain.Random()
"""

REFUSED = {
    "a gradient needs captum, which the extra explain brings": "af.explain.Gradient()(model, images)",
    "Edge needs scikit-image, which the extra explain brings": "af.explain.Edge()(model, images)",
    "a rank correlation needs scipy, which the extra explain brings": (
        "af.parameter_randomisation(model, images, af.explain.Random())"
    ),
    "plot needs matplotlib, which the extra experiment brings": "result.plot()",
    "overlay needs [a-z]*, which the extra experiment brings": "af.overlay(maps, images)",
    "to_dataframe needs pandas, which the extra experiment brings": "result.to_dataframe()",
    "a run needs .*, which the extra experiment brings": "import apem_fast.experiment.run.evaluate",
    "a run needs [a-z]*, which the extra experiment brings": "import apem_fast.experiment.run.store",
    "a run's page needs .*, which the extra experiment brings": "import apem_fast.experiment.report.page",
    "the command filter needs pandas, which the extra experiment brings": "import apem_fast.experiment.filter.maps",
    "apem_fast.siamese needs .*, which the extra siamese brings": "af.siamese",
    "apem_fast.adapters.torchmetrics needs torchmetrics, which": "import apem_fast.adapters.torchmetrics",
}


def test_the_metric_needs_torch_and_numpy_alone():
    """One process for all of it: torch takes seconds to import."""
    attempts = "\n".join(
        f"try:\n    {call}\nexcept ImportError as error:\n    print(error)\nelse:\n    print('nothing was refused')"
        for call in REFUSED.values()
    )
    program = BLOCKED + METRIC + attempts
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == len(REFUSED)
    for sentence, line in zip(REFUSED, said):
        assert re.match(sentence, line), (sentence, line)
        name = re.search(r"the extra (\w+) brings", line)[1]
        assert line.endswith(
            f"pip install --no-build-isolation '.[{name}]' from a checkout, or pip install 'WHEEL[{name}]' with the "
            "wheel's file name"
        )


def test_the_command_is_refused_in_one_sentence():
    program = BLOCKED + "sys.argv = ['/somewhere/apem-fast', '--help']\nfrom apem_fast.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 1 and "torch" not in done.stdout
    assert re.fullmatch(r"apem-fast: the command needs \w+, which the extra experiment brings: .*\n", done.stderr)


def test_the_table_is_that_of_the_project():
    extras = PROJECT["optional-dependencies"]
    for name, modules in EXTRAS.items():
        packages = {re.split(r"[<>=]", requirement)[0] for requirement in extras[name]}
        assert packages - {"dlib-bin"} == set(modules.values()) - {"dlib-bin"}, name
    assert [re.split(r"[<>=]", one)[0] for one in PROJECT["dependencies"]] == ["torch", "numpy"]
    assert extras["all"] == ["apem_fast[explain,experiment,siamese]"]
    versions = [set(extras[name]) for name in ("explain", "experiment", "siamese")]
    pinned = dict(re.match(r"([\w-]+)(.*)", one).groups() for one in set.union(*versions))
    assert len(pinned) == len(set.union(*versions)), "one library in two versions"


def test_what_is_no_library_of_the_extra_is_its_own_fault():
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), extra("explain", "it"):
        import no_such_module  # noqa: F401


def test_what_is_there_is_not_refused():
    require("explain", "it")
    with extra("explain", "it"):
        import scipy  # noqa: F401


def test_a_missing_extra_is_a_users_mistake_on_the_command_line():
    assert issubclass(MissingExtra, ValueError) and issubclass(MissingExtra, ImportError)
