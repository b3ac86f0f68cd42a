"""Siamese ranking networks: training, perception visualization, adversarial explanations and their validation (P3)."""

from apem_fast.siamese.attack import AttackOptions, AttackResult, attack, mid_point_attack
from apem_fast.siamese.networks import Ranker, ScoreRanker, SiameseRanker
from apem_fast.siamese.one_step import one_step_attack
from apem_fast.siamese.pairs import RankedImages
from apem_fast.siamese.recycling import Recycling, recycle
from apem_fast.siamese.training import Training, TrainingOptions

__all__ = [
    "AttackOptions",
    "AttackResult",
    "RankedImages",
    "Ranker",
    "Recycling",
    "ScoreRanker",
    "SiameseRanker",
    "Training",
    "TrainingOptions",
    "attack",
    "mid_point_attack",
    "one_step_attack",
    "recycle",
]
