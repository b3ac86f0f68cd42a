// Every operator as a function of C++; what each does, and the shapes: docs/operators.md.
//
//   find_package(Torch REQUIRED)
//   find_package(apem_fast CONFIG REQUIRED)
//   target_link_libraries(program PRIVATE apem_fast::apem_fast)   # and apem_fast::cuda for tensors on a GPU
//
// The tensors are torch::Tensor, and the four operators with a derivative can be differentiated. Where
// TORCH_TARGET_VERSION is defined, as for a library on libtorch's stable ABI, they are torch::stable::Tensor, which
// knows no derivatives: there the operators named ..._backward give them. An error is a std::exception of one sentence.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#if defined(TORCH_TARGET_VERSION) || defined(TORCH_STABLE_ONLY)
#define APEM_FAST_STABLE 1
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <array>
#else
#define APEM_FAST_STABLE 0
#include <torch/torch.h>
#endif

// In the library; whoever includes this header needs it, so that the linker does not leave it out.
extern "C" int apem_fast_operators_version();

namespace apem_fast {

#if APEM_FAST_STABLE
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
#else
using torch::ScalarType;
using torch::Tensor;
#endif

namespace detail {

inline const int version_of_library = apem_fast_operators_version();

#if APEM_FAST_STABLE

template <typename Result>
struct Results {
  static Result of(StableIValue* stack) { return torch::stable::detail::to<Result>(stack[0]); }
  static constexpr size_t count = 1;
};

template <>
struct Results<void> {
  static void of(StableIValue*) {}
  static constexpr size_t count = 0;
};

template <typename... Each>
struct Results<std::tuple<Each...>> {
  template <size_t... i>
  static std::tuple<Each...> all(StableIValue* stack, std::index_sequence<i...>) {
    return {torch::stable::detail::to<Each>(stack[i])...};
  }
  static std::tuple<Each...> of(StableIValue* stack) { return all(stack, std::index_sequence_for<Each...>{}); }
  static constexpr size_t count = sizeof...(Each);
};

template <typename Result, typename... Arguments>
Result call(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, std::max(sizeof...(Arguments), Results<Result>::count)> stack{
      torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return Results<Result>::of(stack.data());
}

#else

template <typename Result>
struct Returned {
  using type = Result;
};

template <typename Result, typename... Arguments>
Result call(const char* name, const Arguments&... arguments) {
  torch::jit::Stack stack;
  (stack.emplace_back(arguments), ...);
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
  if constexpr (std::is_same_v<Result, Tensor>) {
    return stack[0].toTensor();
  } else if constexpr (!std::is_void_v<Result>) {
    return {stack[0].toTensor(), stack[1].toTensor()};
  }
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Below the recording of gradients, which the classes here do.
template <typename Result, typename... Arguments>
Result call_unrecorded(const char* name, const Arguments&... arguments) {
  at::AutoDispatchBelowADInplaceOrView below;
  return call<Result>(name, arguments...);
}

inline void no_derivative(const AutogradContext* context, size_t argument, const char* sentence) {
  TORCH_CHECK_NOT_IMPLEMENTED(!context->needs_input_grad(argument), sentence);
}

struct DirectedRelevance : torch::autograd::Function<DirectedRelevance> {
  static Tensor forward(AutogradContext* context, const Tensor& relevance, const Tensor& gradient, bool irrelevance) {
    context->save_for_backward({relevance, gradient});
    context->saved_data["irrelevance"] = irrelevance;
    return call_unrecorded<Tensor>("apem_fast::directed_relevance", relevance, gradient, irrelevance);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    return {call<Tensor>("apem_fast::directed_relevance_backward", grads[0], saved[0], saved[1],
                         context->saved_data["irrelevance"].toBool()),
            Tensor(), Tensor()};
  }
};

struct Perturb : torch::autograd::Function<Perturb> {
  static Tensor forward(AutogradContext* context, const Tensor& images, const Tensor& direction, const Tensor& epsilon,
                        std::optional<double> lower, std::optional<double> upper) {
    context->save_for_backward({images, direction, epsilon});
    context->saved_data["lower"] = lower;
    context->saved_data["upper"] = upper;
    return call_unrecorded<Tensor>("apem_fast::perturb", images, direction, epsilon, lower, upper);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto [images, direction] = call<std::tuple<Tensor, Tensor>>(
        "apem_fast::perturb_backward", grads[0], saved[0], saved[1], saved[2],
        context->saved_data["lower"].toOptional<double>(), context->saved_data["upper"].toOptional<double>());
    return {images, direction, Tensor(), Tensor(), Tensor()};
  }
};

struct LabelMargin : torch::autograd::Function<LabelMargin> {
  static variable_list forward(AutogradContext* context, const Tensor& logits, const Tensor& labels) {
    context->save_for_backward({logits, labels});
    auto [margin, predicted] = call_unrecorded<std::tuple<Tensor, Tensor>>("apem_fast::label_margin", logits, labels);
    context->mark_non_differentiable({predicted});
    return {margin, predicted};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    return {call<Tensor>("apem_fast::label_margin_backward", grads[0], saved[0], saved[1]), Tensor()};
  }
};

struct AttackPenalty : torch::autograd::Function<AttackPenalty> {
  static variable_list forward(AutogradContext* context, const Tensor& perturbed, const Tensor& original, double tv,
                               double zero, double diff) {
    context->save_for_backward({perturbed, original});
    context->saved_data["forces"] = std::vector<double>{tv, zero, diff};
    auto [penalty, terms] =
        call_unrecorded<std::tuple<Tensor, Tensor>>("apem_fast::attack_penalty", perturbed, original, tv, zero, diff);
    context->mark_non_differentiable({terms});
    return {penalty, terms};
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const auto forces = context->saved_data["forces"].toDoubleVector();
    const Tensor grad = call<Tensor>("apem_fast::attack_penalty_backward", grads[0], saved[0], saved[1], forces[0],
                                     forces[1], forces[2]);
    return {grad, -grad, Tensor(), Tensor(), Tensor()};
  }
};

#endif

}  // namespace detail

// R / norm1(R) * sign(gradient). (N, 1 or C, H, W), (N, C, H, W) -> (N, C, H, W). Differentiable in `relevance`.
inline Tensor directed_relevance(const Tensor& relevance, const Tensor& gradient, bool irrelevance = false) {
#if APEM_FAST_STABLE
  return detail::call<Tensor>("apem_fast::directed_relevance", relevance, gradient, irrelevance);
#else
  return detail::DirectedRelevance::apply(relevance, gradient.detach(), irrelevance);
#endif
}

inline Tensor directed_relevance_backward(const Tensor& grad_direction, const Tensor& relevance, const Tensor& gradient,
                                          bool irrelevance = false) {
  return detail::call<Tensor>("apem_fast::directed_relevance_backward", grad_direction, relevance, gradient,
                              irrelevance);
}

// images + epsilon * direction. (N, C, H, W) twice, (K,) or (N, K) -> (N, K, C, H, W). Differentiable in `images` and
// `direction`.
inline Tensor perturb(const Tensor& images, const Tensor& direction, const Tensor& epsilon,
                      std::optional<double> lower = std::nullopt, std::optional<double> upper = std::nullopt) {
#if APEM_FAST_STABLE
  return detail::call<Tensor>("apem_fast::perturb", images, direction, epsilon, lower, upper);
#else
  TORCH_CHECK_NOT_IMPLEMENTED(!(torch::GradMode::is_enabled() && epsilon.requires_grad()),
                              "perturb: epsilon has no derivative here; pass epsilon.detach()");
  return detail::Perturb::apply(images, direction, epsilon, lower, upper);
#endif
}

inline std::tuple<Tensor, Tensor> perturb_backward(const Tensor& grad_perturbed, const Tensor& images,
                                                   const Tensor& direction, const Tensor& epsilon,
                                                   std::optional<double> lower = std::nullopt,
                                                   std::optional<double> upper = std::nullopt) {
  return detail::call<std::tuple<Tensor, Tensor>>("apem_fast::perturb_backward", grad_perturbed, images, direction,
                                                  epsilon, lower, upper);
}

// M model inputs straight from the maps: (M, C, H, W).
inline Tensor perturb_probes(const Tensor& images, const Tensor& relevance, const Tensor& gradient, const Tensor& norm,
                             const Tensor& probe_image, const Tensor& probe_map, const Tensor& probe_irrelevance,
                             const Tensor& probe_epsilon, const Tensor& probe_level,
                             std::optional<double> lower = std::nullopt, std::optional<double> upper = std::nullopt,
                             std::optional<ScalarType> dtype = std::nullopt) {
  return detail::call<Tensor>("apem_fast::perturb_probes", images, relevance, gradient, norm, probe_image, probe_map,
                              probe_irrelevance, probe_epsilon, probe_level, lower, upper, dtype);
}

// The same, written into `out`, (M, C, H, W), which is contiguous or channels-last and shares no memory with the
// others.
inline void perturb_probes_into(const Tensor& out, const Tensor& images, const Tensor& relevance,
                                const Tensor& gradient, const Tensor& norm, const Tensor& probe_image,
                                const Tensor& probe_map, const Tensor& probe_irrelevance, const Tensor& probe_epsilon,
                                const Tensor& probe_level, std::optional<double> lower = std::nullopt,
                                std::optional<double> upper = std::nullopt) {
  detail::call<void>("apem_fast::perturb_probes_into", out, images, relevance, gradient, norm, probe_image, probe_map,
                     probe_irrelevance, probe_epsilon, probe_level, lower, upper);
}

// The label's logit minus the best other, and the predicted label: (N, classes), (N,) -> (N,), (N,). The margin is
// differentiable in `logits`.
inline std::tuple<Tensor, Tensor> label_margin(const Tensor& logits, const Tensor& labels) {
#if APEM_FAST_STABLE
  return detail::call<std::tuple<Tensor, Tensor>>("apem_fast::label_margin", logits, labels);
#else
  const auto results = detail::LabelMargin::apply(logits, labels);
  return {results[0], results[1]};
#endif
}

inline Tensor label_margin_backward(const Tensor& grad_margin, const Tensor& logits, const Tensor& labels) {
  return detail::call<Tensor>("apem_fast::label_margin_backward", grad_margin, logits, labels);
}

// Margin, flip (0 or 1) and greatest magnitude of a logit of each row, in float64: (M, classes), (M,), and where given
// (M, classes) of the classes that do not take part -> (3, M).
inline Tensor probe_answers(const Tensor& logits, const Tensor& labels,
                            const std::optional<Tensor>& above = std::nullopt) {
  return detail::call<Tensor>("apem_fast::probe_answers", logits, labels, above);
}

// The least epsilon at which each ray's prediction is not its label, else infinity: (R, K), (R,), (K,) or (R, K) ->
// (R,).
inline Tensor first_flip(const Tensor& predicted, const Tensor& labels, const Tensor& epsilon) {
  return detail::call<Tensor>("apem_fast::first_flip", predicted, labels, epsilon);
}

// An attribution made into a map in [0, 1]; `channels` is "sum" or "keep".
inline Tensor relevance_map(const Tensor& attribution, const std::optional<Tensor>& images = std::nullopt,
                            std::optional<double> percentile = 99.0, const std::string& channels = "sum") {
  return detail::call<Tensor>("apem_fast::relevance_map", attribution, images, percentile, channels);
}

// The maps with their values of at most each threshold set to 0, (N, L, C, H, W), and the l1 norms of these maps and of
// one minus them, (N, L, 2).
inline std::tuple<Tensor, Tensor> zero_levels(const Tensor& relevance, const Tensor& threshold) {
  return detail::call<std::tuple<Tensor, Tensor>>("apem_fast::zero_levels", relevance, threshold);
}

// The penalty of an attack, (N,) float64, differentiable in both images; and its three terms, (N, 3).
inline std::tuple<Tensor, Tensor> attack_penalty(const Tensor& perturbed, const Tensor& original, double tv,
                                                 double zero, double diff) {
#if APEM_FAST_STABLE
  return detail::call<std::tuple<Tensor, Tensor>>("apem_fast::attack_penalty", perturbed, original, tv, zero, diff);
#else
  const auto results = detail::AttackPenalty::apply(perturbed, original, tv, zero, diff);
  return {results[0], results[1]};
#endif
}

inline Tensor attack_penalty_backward(const Tensor& grad_penalty, const Tensor& perturbed, const Tensor& original,
                                      double tv, double zero, double diff) {
  return detail::call<Tensor>("apem_fast::attack_penalty_backward", grad_penalty, perturbed, original, tv, zero, diff);
}

// One step of an attack, within its region and bounds.
inline Tensor attack_step(const Tensor& perturbed, const Tensor& gradient, const std::optional<Tensor>& previous,
                          const std::optional<Tensor>& region, double step_size, double damping,
                          std::optional<double> lower = std::nullopt, std::optional<double> upper = std::nullopt,
                          const std::optional<Tensor>& original = std::nullopt, double zero = 0.0) {
  return detail::call<Tensor>("apem_fast::attack_step", perturbed, gradient, previous, region, step_size, damping,
                              lower, upper, original, zero);
}

// How far each pixel was moved, as a map in [0, 1]: (N, C, H, W) twice -> (N, 1, H, W).
inline Tensor saliency_map(const Tensor& original, const Tensor& perturbed) {
  return detail::call<Tensor>("apem_fast::saliency_map", original, perturbed);
}

}  // namespace apem_fast
