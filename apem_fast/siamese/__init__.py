"""Siamese ranking networks: training, perception visualization, adversarial explanations and their validation (P3)."""

from apem_fast.extras import require

require("siamese", "apem_fast.siamese")

from apem_fast.siamese import examples, faces
from apem_fast.siamese.attacking import attack, mid_point_attack
from apem_fast.siamese.bounds import normalised_bounds
from apem_fast.siamese.explaining import PairExplanation, explain_pair
from apem_fast.siamese.networks import Ranker, SiameseRanker
from apem_fast.siamese.one_step import one_step_attack
from apem_fast.siamese.pairs import RankedImages
from apem_fast.siamese.recycling import Recycling, recycle
from apem_fast.siamese.report.pair import write_explanation
from apem_fast.siamese.results import AttackOptions, AttackResult
from apem_fast.siamese.training import Training, TrainingOptions
from apem_fast.siamese.wrapped import FusionRanker, ScoreRanker, Verifier

__all__ = [
    "AttackOptions",
    "AttackResult",
    "FusionRanker",
    "PairExplanation",
    "RankedImages",
    "Ranker",
    "Recycling",
    "ScoreRanker",
    "SiameseRanker",
    "Training",
    "TrainingOptions",
    "Verifier",
    "attack",
    "examples",
    "explain_pair",
    "faces",
    "mid_point_attack",
    "normalised_bounds",
    "one_step_attack",
    "recycle",
    "write_explanation",
]
