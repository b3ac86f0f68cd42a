"""Explanation methods with one interface: `method(model, images, labels=None) -> attribution (N, C, H, W)`.

    attribution = af.explain.SmoothGrad(samples=100, sigma=0.2)(model, images)

Options are constructor arguments; `.name` and `.options` are recorded with every result.
"""

from apem_fast.explain.adapted import from_callable, from_captum
from apem_fast.explain.attention import AttentionRelevance, AttentionRollout
from apem_fast.explain.baselines import CenteredGaussian, Edge, Random, Uniform
from apem_fast.explain.explainer import Explainer
from apem_fast.explain.grad_cam import GradCAM, GuidedGradCAM
from apem_fast.explain.gradient import Gradient, InputXGradient, IntegratedGradients, SmoothGrad
from apem_fast.explain.guided import GuidedBackprop
from apem_fast.explain.in_float64 import InFloat64
from apem_fast.explain.lrp import LRP, LrpResult
from apem_fast.explain.perturbing import RISE, Occlusion
from apem_fast.explain.registry import (
    BASELINES,
    EXPLAINERS,
    explainer_from,
    imported_by,
    key_of,
    split_outside_brackets,
)
from apem_fast.explain.stored_maps import StoredMaps

__all__ = [
    "BASELINES",
    "EXPLAINERS",
    "LRP",
    "RISE",
    "AttentionRelevance",
    "AttentionRollout",
    "CenteredGaussian",
    "Edge",
    "Explainer",
    "GradCAM",
    "Gradient",
    "GuidedBackprop",
    "GuidedGradCAM",
    "InFloat64",
    "InputXGradient",
    "IntegratedGradients",
    "LrpResult",
    "Occlusion",
    "Random",
    "SmoothGrad",
    "StoredMaps",
    "Uniform",
    "explainer_from",
    "from_callable",
    "from_captum",
    "imported_by",
    "key_of",
    "split_outside_brackets",
]
