"""Processes: a run that is killed again and again, a run of two processes, and of one that dies."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import tiny_networks

from apem_fast.experiment.report.exceptions import exceptional_images
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.ranks import Ranks
from apem_fast.experiment.run.store import RunStore

HERE = Path(__file__).parent
OPTIONS = RunOptions(
    network="tiny_networks:tiny",
    limit=8,
    block=2,
    max_epsilon=400,
    step=0.5,
    batch_size=16,
    explainers=("gradient", "smooth-grad:samples=3:sigma=3.0", "uniform"),
    shuffles=1,
    pictures=5,
)
ARGUMENTS = [
    "evaluate",
    "--network",
    "tiny_networks:tiny",
    "--limit",
    "8",
    "--block",
    "2",
    "--max-epsilon",
    "400",
    "--step",
    "0.5",
    "--batch-size",
    "16",
    "--explainers",
    "gradient,smooth-grad:samples=3:sigma=3.0",
    "--explainers",
    "uniform",
    "--shuffles",
    "1",
    "--pictures",
    "5",
]
LAST_SHARD_OF = ("00002.uniform.parquet", "00003.uniform.parquet")  # by process: each has every other block
TIMES = ["attribution_seconds", "search_seconds", "shuffled_seconds"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> RunStore:
    """The run in one process that nobody stops."""
    store = evaluate(OPTIONS, tmp_path_factory.mktemp("run") / "whole", also_pictured=exceptional_images)
    kept = {path.stem for path in store.folder.glob("photographs/*.png")}
    assert not kept <= set(store.images()["image"][:5])  # an exception lies behind the first images
    return store


def assert_same(folder: Path, whole: RunStore) -> None:
    store = RunStore(folder)
    pandas.testing.assert_frame_equal(store.results().drop(columns=TIMES), whole.results().drop(columns=TIMES))
    pandas.testing.assert_frame_equal(store.images(), whole.images())
    files = [{path.relative_to(one.folder) for path in one.folder.rglob("*.p*")} for one in (store, whole)]
    assert files[0] == files[1] and not list(folder.rglob(".*"))
    for path in sorted(path for path in files[1] if path.suffix == ".png"):
        assert (folder / path).read_bytes() == (whole.folder / path).read_bytes()


def start(command: list[str], **environment: str) -> subprocess.Popen:
    variables = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, error = process.communicate(timeout=300)  # never hangs
    finally:
        process.kill()
    return process.returncode, out, error


def killed_run(kill_at: int | str, folder: Path, **environment: str) -> subprocess.Popen:
    return start(
        [sys.executable, str(HERE / "killed_run.py"), str(kill_at), *ARGUMENTS, "-o", str(folder)], **environment
    )


def start_two(kill_at: tuple[int | str, int | str], folder: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [killed_run(kill_at[rank], folder, RANK=str(rank), LOCAL_RANK=str(rank), **group) for rank in (0, 1)]


def test_a_run_killed_again_and_again_ends_the_same(whole, tmp_path):
    """At the first file, at the choice of images, among the pictures, at a shard, and much later."""
    finished = -1
    for kill_at in (1, 2, 40, 21):
        code, _, error = finish(killed_run(kill_at, tmp_path / "run"))
        assert code == -signal.SIGKILL, error
        shards = list((tmp_path / "run").glob("shards/*.parquet"))
        assert len(shards) >= finished  # nothing is lost
        finished = len(shards)
    assert 5 < finished < 16
    assert list((tmp_path / "run").rglob(".*.part"))  # it was killed while it wrote
    code, out, error = finish(killed_run(-1, tmp_path / "run"))
    assert code == 0, error
    assert len(re.findall("probes and", out)) < 12  # not all steps were done again
    assert_same(tmp_path / "run", whole)


def test_two_processes_under_torchrun_do_the_same(whole, tmp_path):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "apem_fast",
    ]
    code, out, error = finish(start([*torchrun, *ARGUMENTS, "-o", str(tmp_path / "run")]))
    assert code == 0, error
    assert_same(tmp_path / "run", whole)
    assert out.count("Gradient: 2 images") == 2  # of four blocks, those of the first process
    assert out.count("The page with all maps") == 1
    for name in ("index.html", "results.csv", "table.csv"):
        assert (tmp_path / "run" / name).exists()
    rows = pandas.read_csv(tmp_path / "run" / "results.csv")
    assert len(rows) == 8 * 3 * 3 and not rows.duplicated(["image", "explainer", "stage"]).any()


def test_a_process_that_dies_ends_the_others_and_its_share_is_finished_later(whole, tmp_path):
    first, second = start_two((-1, LAST_SHARD_OF[1]), tmp_path / "run")
    assert finish(second)[0] == -signal.SIGKILL
    code, out, error = finish(first)
    assert code == 2 and "another of the 2 processes ended before its share was done" in error
    assert error.count("\n") == 1 and "The page" not in out
    done = RunStore(tmp_path / "run")
    there = {path.name for path in done.folder.glob("shards/*.parquet")}
    assert {path.name for path in whole.folder.glob("shards/*.parquet")} - there == {LAST_SHARD_OF[1]}
    assert 0 < len(done.results()) < len(whole.results())  # finished rows stay usable
    again = evaluate(OPTIONS, tmp_path / "run", also_pictured=exceptional_images)  # alone this time
    pandas.testing.assert_frame_equal(again.images(), whole.images())
    assert_same(tmp_path / "run", whole)


def test_a_mistake_is_reported_once(tmp_path):
    arguments = [*ARGUMENTS, "-o", str(tmp_path / "run"), "--network", "tiny_networks:different_every_time"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = [
        start(
            [sys.executable, "-m", "apem_fast", *arguments],
            RANK=rank,
            WORLD_SIZE="2",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in "01"
    ]
    (code, _, error), (other_code, _, other_error) = map(finish, both)
    assert (code, other_code) == (2, 2) and other_error == ""
    assert error == (
        "apem-fast evaluate: process 1 of 2: network: every process must have the same "
        "(got another than the first process has)\n"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_machines_without_a_folder_in_common_are_refused_at_once(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = []
    for rank in "01":  # the same command in two places: its folder is another one in each
        (tmp_path / rank).mkdir()
        command = ["sh", "-c", 'cd "$0" && exec "$@"', str(tmp_path / rank), sys.executable, "-m", "apem_fast"]
        both.append(start([*command, *ARGUMENTS, "-o", "run"], RANK=rank, **group))
    (code, _, error), (other_code, _, other_error) = map(finish, both)
    assert (code, other_code) == (2, 2) and other_error == ""
    assert error == (
        "apem-fast evaluate: process 1 of 2: output: run must be one folder that all processes share (this one has "
        "another of that name)\n"
    )
    assert not list(tmp_path.rglob("*.parquet")) and not list(tmp_path.rglob(".shared-*"))


def test_one_run_at_a_time_in_a_folder(whole):
    with RunStore.claimed(whole.folder), pytest.raises(ValueError, match="another run is at work in"):
        evaluate(OPTIONS, whole.folder)
    evaluate(OPTIONS, whole.folder)


def test_a_network_that_is_another_each_time_cannot_be_continued(tmp_path, monkeypatch):
    evaluate(OPTIONS, tmp_path / "run")
    other = tiny_networks.different_every_time()
    monkeypatch.setattr(tiny_networks, "tiny", lambda: other)
    with pytest.raises(ValueError, match="the same network=tiny_networks:tiny as it was before; it has changed"):
        evaluate(OPTIONS, tmp_path / "run")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_everything_and_nothing_twice(count):
    for items in ([], list(range(1)), list(range(11))):
        shares = [Ranks(rank, count).share(items) for rank in range(count)]
        assert sorted(one for share in shares for one in share) == items
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_processes_that_are_started_again_do_what_is_missing_each_its_own_share(victim, whole, tmp_path):
    """As torchrun does it when one of them dies: all of them are started again."""
    folder = tmp_path / "run"
    kill_at = [-1, -1]
    kill_at[victim] = LAST_SHARD_OF[victim]
    codes = [finish(process)[0] for process in start_two(tuple(kill_at), folder)]
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 2
    before = {path: path.stat().st_mtime_ns for path in folder.glob("shards/*.parquet")}
    assert 0 < len(before) < 16
    both = [finish(process) for process in start_two((-1, -1), folder)]
    assert [code for code, _, _ in both] == [0, 0], both
    after = {path: path.stat().st_mtime_ns for path in folder.glob("shards/*.parquet")}
    assert before.items() <= after.items()  # what was finished is left alone
    assert_same(folder, whole)
