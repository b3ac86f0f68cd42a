"""Measures of an explanation beside APEM: selectivity, continuity, and whether it depends on what the network learnt.

af.selectivity(model, images, relevance).area
af.continuity(model, images, af.explain.Gradient()).continuity
af.parameter_randomisation(model, images, af.explain.Gradient()).rank_correlation
af.data_randomisation(model, trained_on_permuted_labels, images, af.explain.Gradient()).rank_correlation
"""

from apem_fast.measures.continuity_ratio import ContinuityResult, continuity
from apem_fast.measures.randomisation import RandomisationResult, data_randomisation, parameter_randomisation
from apem_fast.measures.selectivity_curve import SelectivityResult, selectivity

__all__ = [
    "ContinuityResult",
    "RandomisationResult",
    "SelectivityResult",
    "continuity",
    "data_randomisation",
    "parameter_randomisation",
    "selectivity",
]
