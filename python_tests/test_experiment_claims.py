"""The papers' claims: runs that are made to bear each one out, to contradict it, and to leave it open."""

from __future__ import annotations

import numpy as np
import pandas
import pytest

from apem_fast.experiment.report.claims import Claim, claims, claims_section

SHUFFLED = "The median score of shuffled maps is 0."
NORMALISED = "Normalised by them, methods rank in the same order."
LESS = "They do so less on misclassified images."
STAGES = ("3-channel", "1-channel", "times-image")
FOR = {"gradient": 130.0, "guided-backprop": 90.0, "lrp": 60.0, "grad-cam": 25.0, "smooth-grad": 5.0}
"""By method, a typical score at the first stage."""
ON_LOSS = {"gradient": 4.0, "guided-backprop": 2.5, "lrp": 1.7, "grad-cam": 1.2, "smooth-grad": 0.9}
"""By method, how much a loss of 1 takes off it, in units of its spread: the more, the higher it scores."""
PLUS = {"gradient": 25.0, "smooth-grad": 15.0}
"""By method, how much greater its epsilon_plus is than that of the others."""


def run(images: int = 60, sign: float = 1.0, noise: float = 4.0, wrong: bool = True) -> pandas.DataFrame:
    """Rows that bear out every claim (sign 1) or turn each one round (sign -1)."""
    generator = np.random.default_rng(0)
    lines = []
    for correct in (True, False) if wrong else (True,):
        loss = generator.exponential(size=images)
        for method, level in FOR.items():
            base = level if sign > 0 else 150 - level
            spread = noise * (3 if (method == "lrp") == (sign > 0) else 1)
            for place, stage in enumerate(STAGES):
                flat = method == "grad-cam" and place < 2
                fall = 0 if flat else sign * 12 * place
                score = base - fall + spread * generator.standard_normal(images)
                score = (
                    score - sign * (ON_LOSS[method] * spread * loss if correct else 0) - (0 if correct else sign * 40)
                )
                plus = 300 + sign * PLUS.get(method, 0.0) + generator.standard_normal(images)
                lines += [
                    {
                        "image": f"{correct} {i}",
                        "explainer": method,
                        "stage": stage,
                        "correct": correct,
                        "epsilon_plus": plus[i],
                        "epsilon_minus": plus[i] - score[i],
                        "score": score[i],
                        "flipped_minus": True,
                        "flipped_plus": True,
                        "loss": loss[i],
                        "confidence": 0.5,
                    }
                    for i in range(images)
                ]
    return pandas.DataFrame(lines).astype({"correct": "boolean"})


def verdicts(rows: pandas.DataFrame) -> dict[str, str]:
    return {one.statement: one.verdict for one in claims(rows, step=1.0)}


def test_a_run_that_bears_them_out():
    found = verdicts(run())
    for statement in (SHUFFLED, NORMALISED):
        assert found.pop(statement) == "not in this run"
    assert set(found.values()) == {"reproduced"}, found


def test_a_run_that_turns_them_round():
    found = verdicts(run(sign=-1.0))
    same_order = found.pop("Misclassified images rank the methods in the same order.")
    del found[LESS]  # turned round, they still do
    del found[SHUFFLED], found[NORMALISED]
    assert set(found.values()) == {"contradicted"}, found
    assert same_order == "reproduced"


def test_few_images_decide_nothing_and_none_is_said_to_be_missing():
    found = verdicts(run(images=4, noise=200.0))
    assert "contradicted" not in found.values() and list(found.values()).count("undecided") >= 6, found
    alone = verdicts(run(wrong=False))
    for statement in (
        "Misclassified images score lower, with every method.",
        "They do so less on misclassified images.",
    ):
        assert alone[statement] == "not in this run"
    assert alone["LRP scores higher than SmoothGrad."] == "reproduced"


@pytest.mark.parametrize("centre, verdict", [(0.0, "reproduced"), (50.0, "contradicted")])
def test_shuffles(centre, verdict):
    rows = run(wrong=False)
    shuffled = centre + np.random.default_rng(1).integers(-1, 2, len(rows)) * (np.arange(len(rows)) % 5 == 0)
    rows = rows.assign(
        shuffled_epsilon_minus=300.0,
        shuffled_epsilon_plus=300.0 + shuffled,
        shuffled_flipped_minus=True,
        shuffled_flipped_plus=True,
    )
    assert verdicts(rows.assign(score_norm=np.nan))[SHUFFLED] == verdict


@pytest.mark.parametrize("sign, verdict", [(1, "reproduced"), (-1, "contradicted")])
def test_the_order_of_methods_when_normalised(sign, verdict):
    rows = run(wrong=False).assign(
        shuffled_epsilon_minus=300.0,
        shuffled_epsilon_plus=300.0,
        shuffled_flipped_minus=True,
        shuffled_flipped_plus=True,
    )
    assert verdicts(rows.assign(score_norm=sign * rows["score"] / 300))[NORMALISED] == verdict


def test_the_section_counts_its_verdicts():
    section = claims_section([Claim("P1", "a", "reproduced", "5 to 1"), Claim("P2", "b", "undecided")])
    assert section.finding == "Of 2 claims: 1 reproduced, 0 contradicted, 1 undecided, 0 not in this run."
    assert [cell.text for cell in section.tables[0][1].rows[0]] == ["P1", "a", "reproduced", "5 to 1"]
