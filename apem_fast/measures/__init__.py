"""Measures of an explanation other than APEM, and of a measure's own reliability; docs/measures.md compares them.

af.selectivity(model, images, relevance).area
af.measures.deletion(model, images, relevance, imputation="blur").area
af.measures.relevance_gain(model, images, relevance).gain
af.measures.flip_fraction(model, images, relevance).fraction
af.continuity(model, images, af.explain.Gradient()).continuity
af.parameter_randomisation(model, images, af.explain.Gradient()).rank_correlation
af.data_randomisation(model, trained_on_permuted_labels, images, af.explain.Gradient()).rank_correlation
"""

from apem_fast.measures.adversarial_curves import AdversarialCurvesResult, adversarial_curves
from apem_fast.measures.confined_robustness import RobustnessResult, robustness_s
from apem_fast.measures.continuity_ratio import ContinuityResult, continuity
from apem_fast.measures.flip_share import FlipFractionResult, flip_fraction
from apem_fast.measures.pixel_flipping import (
    DeletionResult,
    InsertionResult,
    RelevanceGainResult,
    deletion,
    insertion,
    relevance_gain,
)
from apem_fast.measures.randomisation import RandomisationResult, data_randomisation, parameter_randomisation
from apem_fast.measures.reliability import agreement_of_ranks, krippendorff_alpha, ranks_on_images
from apem_fast.measures.samek_regions import RegionPerturbationResult, region_perturbation
from apem_fast.measures.selectivity_curve import SelectivityResult, selectivity

__all__ = [
    "AdversarialCurvesResult",
    "ContinuityResult",
    "DeletionResult",
    "FlipFractionResult",
    "InsertionResult",
    "RandomisationResult",
    "RegionPerturbationResult",
    "RelevanceGainResult",
    "RobustnessResult",
    "SelectivityResult",
    "adversarial_curves",
    "agreement_of_ranks",
    "continuity",
    "data_randomisation",
    "deletion",
    "flip_fraction",
    "insertion",
    "krippendorff_alpha",
    "parameter_randomisation",
    "ranks_on_images",
    "region_perturbation",
    "relevance_gain",
    "robustness_s",
    "selectivity",
]
