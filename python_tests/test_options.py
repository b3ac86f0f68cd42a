"""Options stand once: functions, docstrings and the command line take them from the records' fields."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import apem_fast as af
from apem_fast import options as options_module
from apem_fast.adapters.captum import apem as captum_apem
from apem_fast.adapters.quantus import Apem
from apem_fast.callers import said_by
from apem_fast.cli.evaluate import evaluate
from apem_fast.cli.filter import filter_maps
from apem_fast.cli.study import study
from apem_fast.experiment.filter.options import OF_RUN, FilterOptions
from apem_fast.experiment.run.options import RunOptions
from apem_fast.margin_curve import RayView, margin_curve
from apem_fast.options import ENGINE, RUNNING, EngineOptions, Options

SEARCHING = [af.apem, af.minimum_epsilon, af.apem_norm, af.filter_relevance, af.Evaluator]
RECORDS = [Options, RunOptions, FilterOptions]


def test_each_option_of_the_engine_has_one_type_and_says_what_it_is():
    types = {name: str(kind) for record in (Options,) for name, kind in record.__annotations__.items()}
    names = {name: kind.__forward_arg__ for name, kind in EngineOptions.__annotations__.items()}
    assert names == {name: types[name] for name in names} and set(names) == set(types)


@pytest.mark.parametrize("record", RECORDS)
def test_each_option_is_described(record):
    for one in dataclasses.fields(record):
        assert len(one.metadata["text"]) > 10 and one.metadata["text"].endswith("."), one.name
        assert f"\n    {one.name} (" in record.__doc__


@pytest.mark.parametrize("function", SEARCHING)
def test_whatever_searches_rays_takes_every_option_and_retypes_none(function):
    called = function.__init__ if inspect.isclass(function) else function
    taken = inspect.signature(called, eval_str=False).parameters
    assert taken["options"].kind is inspect.Parameter.VAR_KEYWORD
    assert taken["options"].annotation == "Unpack[EngineOptions]"
    assert not set(ENGINE) & set(taken)


@pytest.mark.parametrize(
    "what, names",
    [
        *((one, ENGINE) for one in [*SEARCHING, Apem]),
        (captum_apem, {*ENGINE} - {"batch_size"}),
        (RayView, RUNNING),
        (margin_curve, RUNNING),
    ],
)
def test_docstrings_have_each_option_in_the_words_of_its_field(what, names):
    said = " ".join(what.__doc__.split())
    for one in dataclasses.fields(Options):
        text = " ".join(one.metadata["text"].split())
        assert said.count(text) == (one.name in names), one.name


def test_what_looks_at_rays_takes_only_what_says_how_the_model_is_run():
    assert inspect.signature(margin_curve).parameters["options"].annotation == "Unpack[RunningOptions]"
    with pytest.raises(TypeError, match=r"^RayView: unknown option max_epsilon; known: batch_size, "):
        RayView(None, None, None, max_epsilon=3.0)


@pytest.mark.parametrize(
    "command, record, fewer", [(evaluate, RunOptions, ()), (filter_maps, FilterOptions, ("precision",))]
)
def test_a_command_has_every_option_of_its_record(command, record, fewer):
    taken = inspect.signature(command).parameters
    for one in dataclasses.fields(record):
        if "metavar" not in one.metadata or one.name in fewer:
            assert one.name not in taken
        elif one.name != "device":
            given = taken[one.name].annotation.__metadata__[0]
            assert given.help.startswith(one.metadata["text"])
            assert taken[one.name].default == (
                None if one.default is dataclasses.MISSING or one.default == () else one.default
            )


def test_the_study_takes_some_of_a_run():
    assert {"seed", "precision"} <= set(inspect.signature(study).parameters)
    assert "max_epsilon" not in inspect.signature(study).parameters


def test_the_filter_has_the_defaults_of_its_function():
    own = inspect.signature(af.filter_relevance).parameters
    for name in ("levels", "min_drop", "patience", "against"):
        assert FilterOptions.__dataclass_fields__[name].default == own[name].default


def test_of_a_run_the_filter_takes_what_decides_results():
    assert set(OF_RUN) == {"network", "weights", "percentile", "max_epsilon", "step", "search", "bounds", "record"}


def test_an_unknown_option_is_refused_with_the_nearest_one():
    with (
        said_by("apem"),
        pytest.raises(TypeError, match=r"^apem: unknown option max_epsilom; did you mean max_epsilon\? known: "),
    ):
        Options.of(max_epsilom=3.0)


def test_a_record_of_a_run_made_before_an_option_has_its_default():
    options = RunOptions(explainers=("gradient",), stages=("1-channel",))
    record = options.plain()
    assert RunOptions.from_record(record) == options
    del record["bounds"]
    assert RunOptions.from_record(record) == options


PRETENDED = """
import importlib.util, sys
from pathlib import Path

path = Path({folder!r}) / "options.py"
spec = importlib.util.spec_from_file_location("apem_fast.options", path)
module = importlib.util.module_from_spec(spec)
sys.modules["apem_fast.options"] = module
spec.loader.exec_module(module)

from typer.testing import CliRunner
from apem_fast.cli.main import app

for command in ("evaluate", "filter"):
    said = CliRunner(env={{"TERM": "dumb", "COLUMNS": "200"}}).invoke(app, [command, "--help"]).output
    assert "--haste" in said and "How hasty the search is." in said, said

import apem_fast as af
from apem_fast.experiment.run.options import RunOptions

assert RunOptions(haste=5).plain()["haste"] == 5
for function in (af.apem, af.minimum_epsilon, af.apem_norm, af.filter_relevance, af.Evaluator):
    assert "haste (3): How hasty the search is." in function.__doc__
try:
    af.apem(None, None, None, haste=4)
except TypeError as error:
    assert "model must be" in str(error), error
"""


def test_a_new_option_is_two_lines_of_one_file(tmp_path):
    """Functions, docstrings, runs and commands have an option that was added to the record and its names alone."""
    path = Path(options_module.__file__)
    text = path.read_text(encoding="utf-8")
    field = '    haste: int = option(3, "How hasty the search is.", metavar="N")\n'
    for before, line in (("    precision: str\n", "    haste: int\n"), ("    @classmethod\n    def of(", field)):
        assert text.count(before) == 1
        text = text.replace(before, line + before)
    (tmp_path / "options.py").write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "-c", PRETENDED.format(folder=str(tmp_path))], check=True)
