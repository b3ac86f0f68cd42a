// Every operator's schema, in one block; nothing else. Kernels register themselves where they live (cpu/, cuda/).
// The definitions, and what each argument means: apem_fast/ops/.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(apem_fast, m) {
  m.def("directed_relevance(Tensor relevance, Tensor gradient, bool irrelevance=False) -> Tensor");
  m.def(
      "directed_relevance_backward(Tensor grad_direction, Tensor relevance, Tensor gradient, "
      "bool irrelevance=False) -> Tensor");
  m.def("perturb(Tensor images, Tensor direction, Tensor epsilon, float? lower=None, float? upper=None) -> Tensor");
  m.def(
      "perturb_backward(Tensor grad_perturbed, Tensor images, Tensor direction, Tensor epsilon, "
      "float? lower=None, float? upper=None) -> (Tensor, Tensor)");
  m.def(
      "perturb_probes(Tensor images, Tensor relevance, Tensor gradient, Tensor norm, Tensor probe_image, "
      "Tensor probe_map, Tensor probe_irrelevance, Tensor probe_epsilon, Tensor probe_level, "
      "float? lower=None, float? upper=None, ScalarType? dtype=None) -> Tensor");
  m.def("label_margin(Tensor logits, Tensor labels) -> (Tensor, Tensor)");
  m.def("label_margin_backward(Tensor grad_margin, Tensor logits, Tensor labels) -> Tensor");
  m.def("first_flip(Tensor predicted, Tensor labels, Tensor epsilon) -> Tensor");
  m.def(
      "relevance_map(Tensor attribution, Tensor? images=None, float? percentile=99., str channels=\"sum\") "
      "-> Tensor");
  m.def("zero_levels(Tensor relevance, Tensor threshold) -> (Tensor, Tensor)");
  m.def("attack_penalty(Tensor perturbed, Tensor original, float tv, float zero, float diff) -> (Tensor, Tensor)");
  m.def(
      "attack_penalty_backward(Tensor grad_penalty, Tensor perturbed, Tensor original, "
      "float tv, float zero, float diff) -> Tensor");
  m.def(
      "attack_step(Tensor perturbed, Tensor gradient, Tensor? previous, Tensor? region, float step_size, "
      "float damping, float? lower=None, float? upper=None, Tensor? original=None, float zero=0.) -> Tensor");
  m.def("saliency_map(Tensor original, Tensor perturbed) -> Tensor");
}
