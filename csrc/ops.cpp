// Every operator's schema, in one block; nothing else. Kernels register themselves where they live (cpu/, cuda/).
// The definitions, and what each argument means: apem_fast/ops/.

#include "registration.h"

namespace apem_fast {

static void define(torch::stable::detail::StableLibrary& m) {
  m.def("_python_serves() -> ()");  // first: what tells that the operators are in this process already
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
  m.def(
      "perturb_probes_into(Tensor(a0!) out, Tensor images, Tensor relevance, Tensor gradient, Tensor norm, "
      "Tensor probe_image, Tensor probe_map, Tensor probe_irrelevance, Tensor probe_epsilon, Tensor probe_level, "
      "float? lower=None, float? upper=None) -> ()");
  m.def("label_margin(Tensor logits, Tensor labels) -> (Tensor, Tensor)");
  m.def("label_margin_backward(Tensor grad_margin, Tensor logits, Tensor labels) -> Tensor");
  m.def("probe_answers(Tensor logits, Tensor labels, Tensor? above=None) -> Tensor");
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
  // Of the engine alone, for the CPU and float64: what torch has no kernel for (cpu/depthwise_conv2d.cpp).
  m.def(
      "_depthwise_conv2d(Tensor input, Tensor weight, Tensor? bias, int stride_h, int stride_w, int padding_h, "
      "int padding_w, int dilation_h, int dilation_w) -> Tensor");
  m.def(
      "_depthwise_conv2d_backward(Tensor grad_output, Tensor weight, int height, int width, int stride_h, "
      "int stride_w, int padding_h, int padding_w, int dilation_h, int dilation_w, int channels) -> Tensor");
}

bool schemas_are_ours() {
  // A fragment, for a namespace has only one library of the other kind; kept for as long as the process lives.
  static torch::stable::detail::StableLibrary library(torch::stable::detail::StableLibrary::Kind::FRAGMENT, "apem_fast",
                                                      nullptr, __FILE__, __LINE__);
  static const bool ours = defined(library, define);
  return ours;
}

}  // namespace apem_fast

// Named by <apem_fast/operators.h>, so that a C++ program that includes it is linked to this library.
extern "C" __attribute__((visibility("default"))) int apem_fast_operators_version() { return 2; }
