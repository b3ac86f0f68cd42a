"""The audit of a run on disk: what it finds, keeps and says; stopped, by two processes, and of a run that changed."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sys

import numpy as np
import pandas
import pytest
import tiny_networks
import torch
from scipy.stats import hypergeom
from test_experiment_processes import finish, start

import apem_fast as af
from apem_fast.experiment.report.audited import ALL_PROVED, NOT_AUDITED, audit_sentence, moved, worst_case
from apem_fast.experiment.report.page import write_page
from apem_fast.experiment.run import audit as run_audit
from apem_fast.experiment.run.audited_rays import bound, draw, rays_of, read_audit
from apem_fast.experiment.run.evaluate import evaluate
from apem_fast.experiment.run.options import RunOptions
from apem_fast.experiment.run.store import RunStore
from apem_fast.metric.auditing import most_wrong_of

OPTIONS = RunOptions(
    network="tiny_networks:tiny",
    limit=5,
    block=3,
    max_epsilon=30,
    step=0.5,
    batch_size=16,
    explainers=("gradient", "smooth-grad:samples=3"),
    stages=("1-channel", "3-channel"),
)
ALL = 5 * 2 * 2 * 2


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> RunStore:
    return evaluate(OPTIONS, tmp_path_factory.mktemp("run") / "made")


@pytest.fixture
def run(made, tmp_path) -> RunStore:
    shutil.copytree(made.folder, tmp_path / "run")
    return RunStore(tmp_path / "run")


def planted(run: RunStore, by: float = 0.5) -> dict[str, object]:
    """A wrong epsilon in a shard that is otherwise sound."""
    rows = run.read(1, "gradient").to_dict("records")
    row = next(row for row in rows if row["flipped_plus"] and row["epsilon_plus"] > 1)
    row["epsilon_plus"] += by
    row["score"] += by
    run.write(1, "gradient", rows)
    return row


def test_a_sound_run_is_confirmed_and_says_so(run):
    assert read_audit(run) is None and audit_sentence(run) == NOT_AUDITED
    audit = af.audit(run.folder, rays=20, trust=True)
    assert (audit.rays, audit.of, audit.differences) == (20, ALL, ())
    assert audit.most_wrong_count == most_wrong_of(ALL, 20, 0) and audit.probes > 20
    assert read_audit(run) == audit
    page = write_page(run).read_text()
    assert f"Audit: {audit}" in page and 'id="audit"' in page


def test_a_planted_epsilon_is_found_and_an_audit_of_other_epsilons_counts_no_more(run):
    assert not af.audit(run, rays=ALL, trust=True).differences
    wrong = planted(run)
    assert read_audit(run) is None  # the scans are still there, but it is about other epsilons
    before = [path.stat().st_mtime_ns for path in sorted(run.folder.glob("audit/*.parquet"))]
    audit = af.audit(run, rays=ALL, trust=True)
    assert [path.stat().st_mtime_ns for path in sorted(run.folder.glob("audit/*.parquet"))] == before
    (one,) = audit.differences
    assert (one.maps, one.image, one.irrelevance) == (f"gradient, {wrong['stage']}", wrong["image"], True)
    assert (one.found, one.scanned) == (wrong["epsilon_plus"], wrong["epsilon_plus"] - 0.5)
    assert str(audit) == f"{ALL - 1} of {ALL} rays exact: all were audited." and audit.most_wrong_count == 1
    assert "Rays that differ" in write_page(run).read_text()


def test_an_audit_up_to_an_epsilon_speaks_of_those_rays_alone(run):
    every = rays_of(run)
    limit = float(every["found"].quantile(0.4))
    near = every[every["found_flipped"] & (every["found"] <= limit)]
    assert 5 <= len(near) < ALL
    audit = af.audit(run, rays=5, up_to=limit, trust=True)
    assert (audit.rays, audit.of, audit.others) == (5, len(near), ALL - len(near))
    assert audit.most_wrong_count == most_wrong_of(len(near), 5, 0) and audit.probes <= 5 * limit / OPTIONS.step
    said = (
        f"the {len(near)} of {ALL} rays whose epsilon was found to be at most {limit:g}; nothing is said of the others."
    )
    assert said in str(audit) and read_audit(run) == audit
    page = write_page(run).read_text()
    assert said in page and "without --up-to draws from all" in page and "median at worst" not in page
    assert not (run.folder / "audit" / "table.csv").exists()
    with pytest.raises(
        ValueError, match=rf"rays must be at most the {len(near)} that there are to draw from \(got {ALL}\)"
    ):
        af.audit(run, rays=ALL, up_to=limit, trust=True)
    with pytest.raises(ValueError, match=r"up_to must be at least the run's least epsilon, [\d.]+ \(got 0.1\)"):
        af.audit(run, rays=1, up_to=0.1, trust=True)
    whole = af.audit(run, rays=5, trust=True)
    assert whole.up_to is None and (run.folder / "audit" / "table.csv").exists()


def test_scans_are_those_of_the_papers_definition(run):
    """A run by search="exhaustive" holds what the audit's scans find."""
    af.audit(run, rays=ALL, trust=True)
    by_scan = evaluate(dataclasses.replace(OPTIONS, search="exhaustive"), run.folder.parent / "by scan")
    scans = pandas.concat(pandas.read_parquet(path) for path in run.folder.glob("audit/*.parquet"))
    both = rays_of(by_scan).merge(scans, on=run_audit.KEY, validate="one_to_one")
    assert len(both) == ALL
    assert (both["found"] == both["scanned"]).all() and (both["found_flipped"] == both["scanned_flipped"]).all()


def test_a_run_of_proofs_holds_the_same_and_says_that_it_is_proved(run):
    few = {"network": "tiny_networks:tiny_with_relu", "limit": 2, "stages": ("1-channel",), "explainers": ("gradient",)}
    found, proofs = (
        evaluate(dataclasses.replace(OPTIONS, search=search, **few), run.folder.parent / search)
        for search in ("isolate", "certified")
    )
    both = rays_of(proofs).merge(rays_of(found), on=run_audit.KEY, validate="one_to_one")
    assert len(both) == 4 and (both["found_x"] == both["found_y"]).all()
    assert audit_sentence(proofs) == ALL_PROVED and ALL_PROVED in write_page(proofs).read_text()


def test_the_draw_is_uniform_the_same_each_time_and_grows(made):
    every = rays_of(made)
    assert len(every) == ALL and not every.duplicated(run_audit.KEY).any()
    small, great = draw(every, 7, 3, False), draw(every, 19, 3, False)
    assert set(small.index) < set(great.index) and len(great) == 19
    drawn = np.bincount(np.concatenate([draw(every, 8, seed, False).index for seed in range(400)]), minlength=ALL)
    assert drawn.sum() == 8 * 400 and abs(drawn - 80).max() < 5 * 8  # deviations
    strata = draw(every, 16, 3, True).groupby(["explainer", "stage"]).size()
    assert strata.tolist() == [4, 4, 4, 4]


def test_the_bound_is_the_greatest_number_that_would_be_passed_over_so_often():
    for total, rays, differ in ((40, 20, 0), (672, 300, 0), (672, 300, 2), (30, 29, 1)):
        most = most_wrong_of(total, rays, differ)
        assert hypergeom.cdf(differ, total, most, rays) > 0.05
        assert most == total - rays + differ or hypergeom.cdf(differ, total, most + 1, rays) <= 0.05
    assert most_wrong_of(10, 10, 3) == 3 and most_wrong_of(10, 1, 1) == 10


def test_the_bound_of_strata_holds_wherever_the_wrong_ones_are():
    """By trying every way to lay out the wrong ones in two strata of other sizes."""
    every = pandas.DataFrame({"explainer": ["a"] * 30 + ["b"] * 12, "stage": "s"})
    audited = every.iloc[[*range(10), *range(30, 34)]]
    most = bound(every, audited, every.iloc[:0], True)

    def passed(wrong: int) -> float:
        return max(
            hypergeom.pmf(0, 30, a, 10) * hypergeom.pmf(0, 12, wrong - a, 4)
            for a in range(max(0, wrong - 12), min(30, wrong) + 1)
        )

    assert passed(most) > 0.05 >= passed(most + 1)
    assert bound(every, audited, every.iloc[:1], True) >= most
    assert bound(every, every, every.iloc[:1], True) == 1


def test_the_worst_case_is_that_of_every_way_to_be_wrong(made):
    part = pandas.DataFrame({"epsilon_minus": [3.0, 1.0, 5.0], "epsilon_plus": [4.0, 9.0, 2.0]})
    line = moved(part, 1, 1.0, 10.0)
    means, medians = [], []
    for column in part:
        for row in range(3):
            for value in range(1, 11):
                other = part.copy()
                other.loc[row, column] = value
                score = other["epsilon_plus"] - other["epsilon_minus"]
                means.append(score.mean())
                medians.append(score.median())
    assert (line["mean_low"], line["mean_high"]) == pytest.approx((min(means), max(means)))
    assert line["median_low"] <= min(medians) and line["median_high"] >= max(medians)
    assert moved(part, 0, 1.0, 10.0)["median_low"] == line["median"] == moved(part, 0, 1.0, 10.0)["mean_high"] - 1


def test_an_audit_that_is_stopped_goes_on(run, monkeypatch):
    whole = af.audit(run, rays=30, trust=True)
    shutil.rmtree(run.folder / "audit")
    scanned, calls = run_audit.scanned, []

    def stopped(*arguments):
        calls.append(len(arguments[2]))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return scanned(*arguments)

    monkeypatch.setattr(run_audit, "scanned", stopped)
    with pytest.raises(KeyboardInterrupt):
        af.audit(run, rays=30, trust=True)
    again = af.audit(run, rays=30, trust=True)
    assert sum(calls) == 30 + calls[3]  # but for the set that was stopped nothing was scanned twice
    assert (again.probes, again.most_wrong_count) == (whole.probes, whole.most_wrong_count)


@pytest.mark.slow
def test_killed_and_by_two_processes_it_says_the_same(run, tmp_path):
    arguments = ["audit", str(run.folder), "--rays", "30", "--trust"]
    here = str(tiny_networks.__file__).rsplit("/", 1)[0]
    code, _, error = finish(start([sys.executable, f"{here}/killed_run.py", "3", *arguments]))
    assert code == -signal.SIGKILL, error
    assert len(list(run.folder.glob("audit/*.parquet"))) >= 1 and read_audit(run) is None
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    code, out, error = finish(start([*torchrun, "-m", "apem_fast", *arguments]))
    assert code == 0, error
    two = read_audit(run)
    assert out.count(str(two)) == 1
    shutil.rmtree(run.folder / "audit")
    one = af.audit(run, rays=30, trust=True)
    assert (two.probes, two.differences, two.most_wrong_count) == (one.probes, one.differences, one.most_wrong_count)


def test_a_damaged_scan_is_done_again(run):
    whole = af.audit(run, rays=10, trust=True)
    path = min(run.folder.glob("audit/*.parquet"))
    path.write_bytes(path.read_bytes()[:-9])
    said = []
    assert af.audit(run, rays=10, trust=True, progress=lambda state: said.append(state.finished)).probes == whole.probes
    assert any("is damaged" in one for one in said)


def test_mistakes_are_one_sentence(run, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=rf"rays must be at most the {ALL} that there are to draw from \(got 41\)"):
        af.audit(run, rays=41, trust=True)
    with pytest.raises(ValueError, match="names code of somebody's own"):
        af.audit(run, rays=4)
    with pytest.raises(ValueError, match="holds no run"):
        af.audit(tmp_path / "nothing")
    with pytest.raises(TypeError, match="a run must be given without relevance"):
        af.audit(run, torch.zeros(1))
    other = tiny_networks.different_every_time()
    monkeypatch.setattr(tiny_networks, "tiny", lambda: other)
    with pytest.raises(ValueError, match="made with another network=tiny_networks:tiny"):
        af.audit(run, rays=4, trust=True)


def test_another_record_is_not_compared(run):
    rows = run.read(0, "gradient").assign(record="float32").to_dict("records")
    run.write(0, "gradient", rows)
    with pytest.raises(ValueError, match="decided in float32, which here are decided in float64"):
        af.audit(run, rays=ALL, trust=True)


def test_images_that_changed_or_are_gone(tmp_path):
    folder = tiny_networks.class_tree(tmp_path / "images", each=1)
    options = dataclasses.replace(OPTIONS, images=str(folder), limit=None, explainers=("gradient",))
    run = evaluate(options, tmp_path / "run")
    (changed,) = folder.glob("Tabby/*")
    tiny_networks.save_photograph(changed, 3)
    with pytest.raises(ValueError, match="shows something else than it did when the run began"):
        af.audit(run, rays=20, trust=True)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="is not a folder"):
        af.audit(run, rays=20, trust=True)


def test_what_it_could_do_to_the_table_is_written(run):
    audit = af.audit(run, rays=30, trust=True)
    table = worst_case(run, audit)
    assert (
        len(table) == 4
        and (table["median_low"] <= table["median"]).all()
        and (table["mean"] <= table["mean_high"]).all()
    )
    written = pandas.read_csv(run.folder / "audit" / "table.csv")
    pandas.testing.assert_frame_equal(written, table, check_dtype=False)
