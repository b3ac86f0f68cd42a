"""The fused operators `torch.ops.apem_fast.*` as Python functions."""

from apem_fast.ops import autograd, fakes  # noqa: F401  (they register what they define)
from apem_fast.ops.functions import (
    attack_penalty,
    attack_step,
    directed_relevance,
    first_flip,
    label_margin,
    perturb,
    perturb_probes,
    perturb_probes_into,
    probe_answers,
    relevance_map,
    saliency_map,
    zero_levels,
)
from apem_fast.ops.load import backend

__all__ = [
    "attack_penalty",
    "attack_step",
    "backend",
    "directed_relevance",
    "first_flip",
    "label_margin",
    "perturb",
    "perturb_probes",
    "perturb_probes_into",
    "probe_answers",
    "relevance_map",
    "saliency_map",
    "zero_levels",
]
