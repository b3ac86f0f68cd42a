// What each operator demands of its inputs, said once for CPU and CUDA. apem_fast/ops/checks.py says the same, in the
// same words, for the reference definitions; one table of bad calls tests both.
#pragma once

#include "compat.h"

#include <initializer_list>
#include <limits>
#include <optional>
#include <utility>

namespace apem_fast::checks {

template <typename Came>
void require(bool holds, const char* op, const std::string& argument, const std::string& expectation,
             const Came& came) {
  if (!holds) {
    std::ostringstream message;
    message << op << ": " << argument << " must " << expectation << " (got " << came << ")";
    throw std::runtime_error(message.str());
  }
}

inline void dim(const char* op, const char* name, const Tensor& tensor, const char* shape,
                std::initializer_list<int64_t> dims) {
  bool holds = false;
  for (const int64_t d : dims) {
    holds = holds || tensor.dim() == d;
  }
  require(holds, op, name, std::string("have shape ") + shape, shape_of(tensor));
}

inline void floating(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType t = tensor.scalar_type();
  require(t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::Half || t == ScalarType::BFloat16, op,
          name, "be float32, float64, float16 or bfloat16", name_of(t));
}

inline void dtype(const char* op, const char* name, const Tensor& tensor, std::initializer_list<ScalarType> allowed) {
  bool holds = false;
  std::string names;
  for (const ScalarType t : allowed) {
    holds = holds || tensor.scalar_type() == t;
    names += (names.empty() ? "" : " or ") + name_of(t);
  }
  require(holds, op, name, "be " + names, name_of(tensor.scalar_type()));
}

inline void sizes(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  bool holds = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string expected = "(";
  int64_t d = 0;
  for (const int64_t size : shape) {
    holds = holds && tensor.size(d) == size;
    expected += (d++ ? ", " : "") + std::to_string(size);
  }
  require(holds, op, name, "have shape " + expected + ")", shape_of(tensor));
}

inline void same_device(const char* op, const char* first_name, const Tensor& first,
                        std::initializer_list<std::pair<const char*, const Tensor*>> others) {
  for (const auto& [name, tensor] : others) {
    const bool same = tensor->is_cpu() == first.is_cpu() && tensor->get_device_index() == first.get_device_index();
    if (!same) {
      require(false, op, name, std::string("be on the device of ") + first_name + ", " + name_of(first.device()),
              name_of(tensor->device()));
    }
  }
}

// `map` is [maps, 1 or C, H, W] for `like` [N, C, H, W].
inline void map_of(const char* op, const char* name, const Tensor& map, int64_t maps, const char* like_name,
                   const Tensor& like) {
  dim(op, name, map, "(N, 1, H, W) or (N, C, H, W)", {4});
  const bool fits = map.size(0) == maps && (map.size(1) == 1 || map.size(1) == like.size(1)) &&
                    map.size(2) == like.size(2) && map.size(3) == like.size(3);
  require(fits, op, name,
          std::string("match ") + like_name + " " + shape_of(like) + " in all but the channels, which may be 1",
          shape_of(map));
}

// Only for CPU tensors: elsewhere reading the values would wait for the device.
inline void index_in(const char* op, const char* name, const Tensor& index, int64_t size, const char* of) {
  if (!index.is_cpu() || index.numel() == 0) {
    return;
  }
  const Tensor values = torch::stable::contiguous(index);
  const int64_t* value = data_of<int64_t>(values);
  int64_t low = value[0], high = value[0];
  for (int64_t i = 1; i < values.numel(); ++i) {
    low = value[i] < low ? value[i] : low;
    high = value[i] > high ? value[i] : high;
  }
  require(0 <= low && high < size, op, name, "lie in [0, " + std::to_string(size) + "), " + of,
          "min=" + std::to_string(low) + ", max=" + std::to_string(high));
}

inline void apart(const char* op, const Tensor& out,
                  std::initializer_list<std::pair<const char*, const Tensor*>> others) {
  const auto [begin, end] = bytes_of(out);
  for (const auto& [name, tensor] : others) {
    const auto [first, last] = bytes_of(*tensor);
    require(end <= first || last <= begin, op, "out", std::string("share no memory with ") + name, "some of it");
  }
}

// %g, as Python's format(value, "g").
inline std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

struct Bounds {
  double lower = -std::numeric_limits<double>::infinity();
  double upper = std::numeric_limits<double>::infinity();
};

inline Bounds bounds(const char* op, std::optional<double> lower, std::optional<double> upper) {
  if (lower && upper) {
    require(*lower <= *upper, op, "lower", "be at most upper=" + number(*upper), number(*lower));
  }
  Bounds result;
  return {lower.value_or(result.lower), upper.value_or(result.upper)};
}

inline void directed_relevance(const Tensor& relevance, const Tensor& gradient, const char* op = "directed_relevance") {
  floating(op, "relevance", relevance);
  dim(op, "gradient", gradient, "(N, C, H, W)", {4});
  dtype(op, "gradient", gradient, {relevance.scalar_type(), ScalarType::Char});
  map_of(op, "relevance", relevance, gradient.size(0), "gradient", gradient);
  same_device(op, "relevance", relevance, {{"gradient", &gradient}});
}

inline void directed_relevance_backward(const Tensor& grad_direction, const Tensor& relevance, const Tensor& gradient) {
  const char* op = "directed_relevance_backward";
  directed_relevance(relevance, gradient, op);
  sizes(op, "grad_direction", grad_direction, {gradient.size(0), gradient.size(1), gradient.size(2), gradient.size(3)});
  dtype(op, "grad_direction", grad_direction, {relevance.scalar_type()});
  same_device(op, "relevance", relevance, {{"grad_direction", &grad_direction}});
}

inline Bounds perturb(const Tensor& images, const Tensor& direction, const Tensor& epsilon, std::optional<double> lower,
                      std::optional<double> upper, const char* op = "perturb") {
  dim(op, "images", images, "(N, C, H, W)", {4});
  floating(op, "images", images);
  sizes(op, "direction", direction, {images.size(0), images.size(1), images.size(2), images.size(3)});
  dtype(op, "direction", direction, {images.scalar_type()});
  dim(op, "epsilon", epsilon, "(K,) or (N, K)", {1, 2});
  floating(op, "epsilon", epsilon);
  if (epsilon.dim() == 2) {
    sizes(op, "epsilon", epsilon, {images.size(0), epsilon.size(1)});
  }
  const Bounds result = bounds(op, lower, upper);
  same_device(op, "images", images, {{"direction", &direction}, {"epsilon", &epsilon}});
  return result;
}

inline Bounds perturb_backward(const Tensor& grad_perturbed, const Tensor& images, const Tensor& direction,
                               const Tensor& epsilon, std::optional<double> lower, std::optional<double> upper) {
  const char* op = "perturb_backward";
  const Bounds result = perturb(images, direction, epsilon, lower, upper, op);
  sizes(op, "grad_perturbed", grad_perturbed,
        {images.size(0), epsilon.size(epsilon.dim() - 1), images.size(1), images.size(2), images.size(3)});
  dtype(op, "grad_perturbed", grad_perturbed, {images.scalar_type()});
  same_device(op, "images", images, {{"grad_perturbed", &grad_perturbed}});
  return result;
}

inline void dtype_of_probes(const char* op, const char* name, ScalarType came, const Tensor& images) {
  require(came == images.scalar_type() || came == ScalarType::Half || came == ScalarType::BFloat16, op, name,
          "be float16, bfloat16 or that of images, " + name_of(images.scalar_type()), name_of(came));
}

inline Bounds perturb_probes(const Tensor& images, const Tensor& relevance, const Tensor& gradient, const Tensor& norm,
                             const Tensor& probe_image, const Tensor& probe_map, const Tensor& probe_irrelevance,
                             const Tensor& probe_epsilon, const Tensor& probe_level, std::optional<double> lower,
                             std::optional<double> upper, std::optional<ScalarType> out_dtype,
                             const char* op = "perturb_probes") {
  dim(op, "images", images, "(N, C, H, W)", {4});
  floating(op, "images", images);
  map_of(op, "relevance", relevance, relevance.dim() ? relevance.size(0) : 0, "images", images);
  dtype(op, "relevance", relevance, {images.scalar_type()});
  sizes(op, "gradient", gradient, {images.size(0), images.size(1), images.size(2), images.size(3)});
  dtype(op, "gradient", gradient, {images.scalar_type(), ScalarType::Char});
  dim(op, "norm", norm, "(M,)", {1});
  dtype(op, "norm", norm, {ScalarType::Double});
  const auto per_probe = [&](const char* name, const Tensor& tensor, ScalarType expected) {
    sizes(op, name, tensor, {norm.size(0)});
    dtype(op, name, tensor, {expected});
  };
  per_probe("probe_image", probe_image, ScalarType::Long);
  per_probe("probe_map", probe_map, ScalarType::Long);
  per_probe("probe_irrelevance", probe_irrelevance, ScalarType::Bool);
  per_probe("probe_epsilon", probe_epsilon, ScalarType::Double);
  per_probe("probe_level", probe_level, ScalarType::Double);
  if (out_dtype) {
    dtype_of_probes(op, "dtype", *out_dtype, images);
  }
  const Bounds result = bounds(op, lower, upper);
  same_device(op, "images", images,
              {{"relevance", &relevance},
               {"gradient", &gradient},
               {"norm", &norm},
               {"probe_image", &probe_image},
               {"probe_map", &probe_map},
               {"probe_irrelevance", &probe_irrelevance},
               {"probe_epsilon", &probe_epsilon},
               {"probe_level", &probe_level}});
  index_in(op, "probe_image", probe_image, images.size(0), "the rows of images");
  index_in(op, "probe_map", probe_map, relevance.size(0), "the rows of relevance");
  return result;
}

inline Bounds perturb_probes_into(const Tensor& out, const Tensor& images, const Tensor& relevance,
                                  const Tensor& gradient, const Tensor& norm, const Tensor& probe_image,
                                  const Tensor& probe_map, const Tensor& probe_irrelevance, const Tensor& probe_epsilon,
                                  const Tensor& probe_level, std::optional<double> lower, std::optional<double> upper) {
  const char* op = "perturb_probes_into";
  const Bounds result = perturb_probes(images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance,
                                       probe_epsilon, probe_level, lower, upper, std::nullopt, op);
  sizes(op, "out", out, {norm.size(0), images.size(1), images.size(2), images.size(3)});
  dtype_of_probes(op, "out", out.scalar_type(), images);
  same_device(op, "images", images, {{"out", &out}});
  require(out.is_contiguous() || is_channels_last(out), op, "out", "be contiguous or channels-last", strides_of(out));
  return result;
}

// What is known of tensors that lie somewhere: `out` is written while the others are still read.
inline void perturb_probes_apart(const Tensor& out, const Tensor& images, const Tensor& relevance,
                                 const Tensor& gradient, const Tensor& norm, const Tensor& probe_image,
                                 const Tensor& probe_map, const Tensor& probe_irrelevance, const Tensor& probe_epsilon,
                                 const Tensor& probe_level) {
  apart("perturb_probes_into", out,
        {{"images", &images},
         {"relevance", &relevance},
         {"gradient", &gradient},
         {"norm", &norm},
         {"probe_image", &probe_image},
         {"probe_map", &probe_map},
         {"probe_irrelevance", &probe_irrelevance},
         {"probe_epsilon", &probe_epsilon},
         {"probe_level", &probe_level}});
}

inline void label_margin(const Tensor& logits, const Tensor& labels, const char* op = "label_margin") {
  dim(op, "logits", logits, "(N, classes)", {2});
  floating(op, "logits", logits);
  require(logits.size(1) >= 2, op, "logits", "have at least 2 classes", shape_of(logits));
  sizes(op, "labels", labels, {logits.size(0)});
  dtype(op, "labels", labels, {ScalarType::Long});
  same_device(op, "logits", logits, {{"labels", &labels}});
  index_in(op, "labels", labels, logits.size(1), "the classes of logits");
}

inline void label_margin_backward(const Tensor& grad_margin, const Tensor& logits, const Tensor& labels) {
  const char* op = "label_margin_backward";
  label_margin(logits, labels, op);
  sizes(op, "grad_margin", grad_margin, {logits.size(0)});
  dtype(op, "grad_margin", grad_margin, {logits.scalar_type()});
  same_device(op, "logits", logits, {{"grad_margin", &grad_margin}});
}

inline void probe_answers(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& above) {
  const char* op = "probe_answers";
  label_margin(logits, labels, op);
  if (above) {
    sizes(op, "above", *above, {logits.size(0), logits.size(1)});
    dtype(op, "above", *above, {ScalarType::Bool});
    same_device(op, "logits", logits, {{"above", &*above}});
  }
}

inline void first_flip(const Tensor& predicted, const Tensor& labels, const Tensor& epsilon) {
  const char* op = "first_flip";
  dim(op, "predicted", predicted, "(R, K)", {2});
  dtype(op, "predicted", predicted, {ScalarType::Long});
  sizes(op, "labels", labels, {predicted.size(0)});
  dtype(op, "labels", labels, {ScalarType::Long});
  dim(op, "epsilon", epsilon, "(K,) or (R, K)", {1, 2});
  dtype(op, "epsilon", epsilon, {ScalarType::Float, ScalarType::Double});
  if (epsilon.dim() == 2) {
    sizes(op, "epsilon", epsilon, {predicted.size(0), predicted.size(1)});
  } else {
    sizes(op, "epsilon", epsilon, {predicted.size(1)});
  }
  same_device(op, "predicted", predicted, {{"labels", &labels}, {"epsilon", &epsilon}});
}

inline void relevance_map(const Tensor& attribution, const std::optional<Tensor>& images,
                          std::optional<double> percentile, const std::string& channels) {
  const char* op = "relevance_map";
  dim(op, "attribution", attribution, "(N, C, H, W)", {4});
  floating(op, "attribution", attribution);
  if (images) {
    dtype(op, "images", *images, {attribution.scalar_type()});
    map_of(op, "images", *images, attribution.size(0), "attribution", attribution);
    same_device(op, "attribution", attribution, {{"images", &*images}});
  }
  if (percentile) {
    require(0 <= *percentile && *percentile <= 100, op, "percentile", "lie in [0, 100]", number(*percentile));
  }
  require(channels == "sum" || channels == "keep", op, "channels", "be \"sum\" or \"keep\"", "\"" + channels + "\"");
}

inline void same_image(const char* op, const char* name, const Tensor& tensor, const Tensor& like) {
  sizes(op, name, tensor, {like.size(0), like.size(1), like.size(2), like.size(3)});
  dtype(op, name, tensor, {like.scalar_type()});
}

inline void attack_penalty(const Tensor& perturbed, const Tensor& original, const char* op = "attack_penalty") {
  dim(op, "perturbed", perturbed, "(N, C, H, W)", {4});
  floating(op, "perturbed", perturbed);
  same_image(op, "original", original, perturbed);
  same_device(op, "perturbed", perturbed, {{"original", &original}});
}

inline void attack_penalty_backward(const Tensor& grad_penalty, const Tensor& perturbed, const Tensor& original) {
  const char* op = "attack_penalty_backward";
  attack_penalty(perturbed, original, op);
  sizes(op, "grad_penalty", grad_penalty, {perturbed.size(0)});
  dtype(op, "grad_penalty", grad_penalty, {ScalarType::Double});
  same_device(op, "perturbed", perturbed, {{"grad_penalty", &grad_penalty}});
}

inline Bounds attack_step(const Tensor& perturbed, const Tensor& gradient, const std::optional<Tensor>& previous,
                          const std::optional<Tensor>& region, std::optional<double> lower, std::optional<double> upper,
                          const std::optional<Tensor>& original, double zero) {
  const char* op = "attack_step";
  dim(op, "perturbed", perturbed, "(N, C, H, W)", {4});
  floating(op, "perturbed", perturbed);
  same_image(op, "gradient", gradient, perturbed);
  same_device(op, "perturbed", perturbed, {{"gradient", &gradient}});
  if (previous) {
    same_image(op, "previous", *previous, perturbed);
    same_device(op, "perturbed", perturbed, {{"previous", &*previous}});
  }
  if (original) {
    same_image(op, "original", *original, perturbed);
    same_device(op, "perturbed", perturbed, {{"original", &*original}});
  }
  if (region) {
    map_of(op, "region", *region, region->dim() ? region->size(0) : 0, "perturbed", perturbed);
    require(region->size(0) == 1 || region->size(0) == perturbed.size(0), op, "region",
            "hold 1 mask or " + std::to_string(perturbed.size(0)) + ", one for each image", region->size(0));
    dtype(op, "region", *region, {ScalarType::Bool});
    same_device(op, "perturbed", perturbed, {{"region", &*region}});
  }
  const Bounds result = bounds(op, lower, upper);
  require(zero >= 0, op, "zero", "be at least 0", number(zero));
  require(zero == 0 || original.has_value(), op, "original", "be given where zero is not 0", "None");
  return result;
}

inline void zero_levels(const Tensor& relevance, const Tensor& threshold) {
  const char* op = "zero_levels";
  dim(op, "relevance", relevance, "(N, C, H, W)", {4});
  floating(op, "relevance", relevance);
  dim(op, "threshold", threshold, "(L,) or (N, L)", {1, 2});
  dtype(op, "threshold", threshold, {ScalarType::Float, ScalarType::Double});
  if (threshold.dim() == 2) {
    sizes(op, "threshold", threshold, {relevance.size(0), threshold.size(1)});
  }
  same_device(op, "relevance", relevance, {{"threshold", &threshold}});
}

inline void saliency_map(const Tensor& original, const Tensor& perturbed) {
  const char* op = "saliency_map";
  dim(op, "original", original, "(N, C, H, W)", {4});
  floating(op, "original", original);
  same_image(op, "perturbed", perturbed, original);
  same_device(op, "original", original, {{"perturbed", &perturbed}});
}

}  // namespace apem_fast::checks
