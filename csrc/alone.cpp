// What the operators are without Python's package: fakes from C++, for meta tensors and torch.compile with fixed
// shapes, and a refusal where torch.func would lose derivatives. The package brings its own, which do more, and says so
// first.

#include "checks.h"
#include "registration.h"

#include <memory>
#include <tuple>

namespace apem_fast {
namespace {

using torch::stable::detail::StableLibrary;

Tensor like(const Tensor& images, std::initializer_list<int64_t> shape) {
  return empty_image(images, shape, images.scalar_type(), image_format(images));
}

Tensor like(const Tensor& images) {
  return like(images, {images.size(0), images.size(1), images.size(2), images.size(3)});
}

Tensor plain(const Tensor& of, std::initializer_list<int64_t> shape, ScalarType dtype) {
  return empty_image(of, shape, dtype, MemoryFormat::Contiguous);
}

// (N * K, C, H, W) seen as (N, K, C, H, W).
Tensor of_each(const Tensor& images, int64_t k) {
  const int64_t n = images.size(0), c = images.size(1), h = images.size(2), w = images.size(3);
  return torch::stable::view(like(images, {n * k, c, h, w}), {n, k, c, h, w});
}

Tensor directed_relevance(const Tensor& relevance, const Tensor& gradient, bool) {
  checks::directed_relevance(relevance, gradient);
  return empty_image(gradient, {gradient.size(0), gradient.size(1), gradient.size(2), gradient.size(3)},
                     relevance.scalar_type(), image_format(gradient));
}

Tensor directed_relevance_backward(const Tensor& grad_direction, const Tensor& relevance, const Tensor& gradient,
                                   bool) {
  checks::directed_relevance_backward(grad_direction, relevance, gradient);
  return like(relevance);
}

Tensor perturb(const Tensor& images, const Tensor& direction, const Tensor& epsilon, std::optional<double> lower,
               std::optional<double> upper) {
  checks::perturb(images, direction, epsilon, lower, upper);
  return of_each(images, epsilon.size(epsilon.dim() - 1));
}

std::tuple<Tensor, Tensor> perturb_backward(const Tensor& grad_perturbed, const Tensor& images, const Tensor& direction,
                                            const Tensor& epsilon, std::optional<double> lower,
                                            std::optional<double> upper) {
  checks::perturb_backward(grad_perturbed, images, direction, epsilon, lower, upper);
  return {like(images), like(images)};
}

Tensor perturb_probes(const Tensor& images, const Tensor& relevance, const Tensor& gradient, const Tensor& norm,
                      const Tensor& probe_image, const Tensor& probe_map, const Tensor& probe_irrelevance,
                      const Tensor& probe_epsilon, const Tensor& probe_level, std::optional<double> lower,
                      std::optional<double> upper, std::optional<ScalarType> dtype) {
  checks::perturb_probes(images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance, probe_epsilon,
                         probe_level, lower, upper, dtype);
  return empty_image(images, {norm.size(0), images.size(1), images.size(2), images.size(3)},
                     dtype.value_or(images.scalar_type()), image_format(images));
}

void perturb_probes_into(const Tensor& out, const Tensor& images, const Tensor& relevance, const Tensor& gradient,
                         const Tensor& norm, const Tensor& probe_image, const Tensor& probe_map,
                         const Tensor& probe_irrelevance, const Tensor& probe_epsilon, const Tensor& probe_level,
                         std::optional<double> lower, std::optional<double> upper) {
  checks::perturb_probes_into(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance,
                              probe_epsilon, probe_level, lower, upper);
}

std::tuple<Tensor, Tensor> label_margin(const Tensor& logits, const Tensor& labels) {
  checks::label_margin(logits, labels);
  return {plain(logits, {logits.size(0)}, logits.scalar_type()), plain(labels, {logits.size(0)}, ScalarType::Long)};
}

Tensor label_margin_backward(const Tensor& grad_margin, const Tensor& logits, const Tensor& labels) {
  checks::label_margin_backward(grad_margin, logits, labels);
  return plain(logits, {logits.size(0), logits.size(1)}, logits.scalar_type());
}

Tensor probe_answers(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& above) {
  checks::probe_answers(logits, labels, above);
  return plain(logits, {3, logits.size(0)}, ScalarType::Double);
}

Tensor first_flip(const Tensor& predicted, const Tensor& labels, const Tensor& epsilon) {
  checks::first_flip(predicted, labels, epsilon);
  return plain(epsilon, {predicted.size(0)}, epsilon.scalar_type());
}

Tensor relevance_map(const Tensor& attribution, const std::optional<Tensor>& images, std::optional<double> percentile,
                     const std::string& channels) {
  checks::relevance_map(attribution, images, percentile, channels);
  return like(attribution, {attribution.size(0), channels == "sum" ? 1 : attribution.size(1), attribution.size(2),
                            attribution.size(3)});
}

std::tuple<Tensor, Tensor> zero_levels(const Tensor& relevance, const Tensor& threshold) {
  checks::zero_levels(relevance, threshold);
  const int64_t levels = threshold.size(threshold.dim() - 1);
  return {of_each(relevance, levels), plain(relevance, {relevance.size(0), levels, 2}, ScalarType::Double)};
}

std::tuple<Tensor, Tensor> attack_penalty(const Tensor& perturbed, const Tensor& original, double, double, double) {
  checks::attack_penalty(perturbed, original);
  const int64_t n = perturbed.size(0);
  return {plain(perturbed, {n}, ScalarType::Double), plain(perturbed, {n, 3}, ScalarType::Double)};
}

Tensor attack_penalty_backward(const Tensor& grad_penalty, const Tensor& perturbed, const Tensor& original, double,
                               double, double) {
  checks::attack_penalty_backward(grad_penalty, perturbed, original);
  return like(perturbed);
}

Tensor attack_step(const Tensor& perturbed, const Tensor& gradient, const std::optional<Tensor>& previous,
                   const std::optional<Tensor>& region, double, double, std::optional<double> lower,
                   std::optional<double> upper, const std::optional<Tensor>& original, double zero) {
  checks::attack_step(perturbed, gradient, previous, region, lower, upper, original, zero);
  return like(perturbed);
}

Tensor saliency_map(const Tensor& original, const Tensor& perturbed) {
  checks::saliency_map(original, perturbed);
  return like(original, {original.size(0), 1, original.size(2), original.size(3)});
}

// Takes the arguments over, so that they are freed, and refuses.
template <typename Name, auto function>
struct Refused;

template <typename Name, typename Result, typename... Arguments, Result (*function)(Arguments...)>
struct Refused<Name, function> {
  static Result call(Arguments...) {
    throw std::runtime_error(std::string(Name::get()) +
                             ": the library alone does not serve torch.func (vmap, grad, jvp and the like); "
                             "import apem_fast");
  }
};

#define APEM_FAST_ALONE(op)                                       \
  do {                                                            \
    struct Name {                                                 \
      static const char* get() { return #op; }                    \
    };                                                            \
    fakes.impl(#op, TORCH_BOX(&op));                              \
    transforms.impl(#op, TORCH_BOX((&Refused<Name, &op>::call))); \
  } while (false)

// Gone as soon as the package says that it serves.
struct Alone {
  StableLibrary fakes{StableLibrary::Kind::IMPL, "apem_fast", "Meta", __FILE__, __LINE__};
  StableLibrary transforms{StableLibrary::Kind::IMPL, "apem_fast", "FuncTorchDynamicLayerFrontMode", __FILE__,
                           __LINE__};

  Alone() {
    APEM_FAST_ALONE(directed_relevance);
    APEM_FAST_ALONE(directed_relevance_backward);
    APEM_FAST_ALONE(perturb);
    APEM_FAST_ALONE(perturb_backward);
    APEM_FAST_ALONE(perturb_probes);
    APEM_FAST_ALONE(perturb_probes_into);
    APEM_FAST_ALONE(label_margin);
    APEM_FAST_ALONE(label_margin_backward);
    APEM_FAST_ALONE(probe_answers);
    APEM_FAST_ALONE(first_flip);
    APEM_FAST_ALONE(relevance_map);
    APEM_FAST_ALONE(zero_levels);
    APEM_FAST_ALONE(attack_penalty);
    APEM_FAST_ALONE(attack_penalty_backward);
    APEM_FAST_ALONE(attack_step);
    APEM_FAST_ALONE(saliency_map);
  }
};

std::unique_ptr<Alone>& alone() {
  static std::unique_ptr<Alone> registered = std::make_unique<Alone>();
  return registered;
}

void python_serves() {
  alone().reset();
  derivatives_elsewhere = true;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(apem_fast, CompositeExplicitAutograd, m) {
  if (schemas_are_ours()) {
    m.impl("_python_serves", TORCH_BOX(&python_serves));
    alone();
  }
}

}  // namespace apem_fast
