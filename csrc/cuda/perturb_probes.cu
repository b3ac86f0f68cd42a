// Binds perturb_probes_kernel.cuh to torch.

#include "binding.h"
#include "perturb_probes_kernel.cuh"

namespace apem_fast {
namespace {

void write_probes(const Tensor& out, const Tensor& images, const Tensor& relevance, const Tensor& gradient,
                  const Tensor& norm, const Tensor& probe_image, const Tensor& probe_map,
                  const Tensor& probe_irrelevance, const Tensor& probe_epsilon, const Tensor& probe_level,
                  const checks::Bounds& bounds) {
  if (out.numel() == 0) {
    return;
  }
  const OnDeviceOf device(images);
  const MemoryFormat format = image_format(out);
  const int64_t probes = norm.size(0), channels = images.size(1), pixels = images.size(2) * images.size(3);
  const Tensor x = torch::stable::contiguous(images, format);     // [N, C, H, W]
  const Tensor r = torch::stable::contiguous(relevance, format);  // [maps, 1 or C, H, W]
  const Tensor g = torch::stable::contiguous(gradient, format);   // [N, C, H, W]
  const Tensor norms = torch::stable::contiguous(norm);           // [M], as the five below
  const Tensor rows = torch::stable::contiguous(probe_image);
  const Tensor maps = torch::stable::contiguous(probe_map);
  const Tensor inverted = torch::stable::contiguous(probe_irrelevance);
  const Tensor epsilons = torch::stable::contiguous(probe_epsilon);
  const Tensor levels = torch::stable::contiguous(probe_level);

  dispatch_floating(images.scalar_type(), [&](auto value) {
    using T = decltype(value);
    dispatch_gradient<T>(gradient.scalar_type(), [&](auto gradient_value) {
      using G = decltype(gradient_value);
      const auto run = [&](auto out_value) {
        using O = decltype(out_value);
        launch_perturb_probes APEM_FAST_BLOCK(
            PerturbProbesArguments<T, G, O>{
                data_of<T>(x), data_of<T>(r), data_of<G>(g), data_of<double>(norms), data_of<int64_t>(rows),
                data_of<int64_t>(maps), data_of<bool>(inverted), data_of<double>(epsilons), data_of<double>(levels),
                mutable_data_of<O>(out), probes, x.size(0), r.size(0),
                Cover(channels, pixels, r.size(1), format == MemoryFormat::ChannelsLast), bounds.lower, bounds.upper},
            device.stream);
      };
      if (out.scalar_type() == images.scalar_type()) {
        run(T{});
      } else if (out.scalar_type() == ScalarType::Half) {
        run(Half{});
      } else {
        run(BFloat16{});
      }
    });
  });
  device.check_launches();
}

Tensor perturb_probes(const Tensor& images, const Tensor& relevance, const Tensor& gradient, const Tensor& norm,
                      const Tensor& probe_image, const Tensor& probe_map, const Tensor& probe_irrelevance,
                      const Tensor& probe_epsilon, const Tensor& probe_level, std::optional<double> lower,
                      std::optional<double> upper, std::optional<ScalarType> dtype) {
  const checks::Bounds bounds =
      checks::perturb_probes(images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance,
                             probe_epsilon, probe_level, lower, upper, dtype);
  Tensor out = empty_image(images, {norm.size(0), images.size(1), images.size(2), images.size(3)},
                           dtype.value_or(images.scalar_type()), image_format(images));
  write_probes(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance, probe_epsilon,
               probe_level, bounds);
  return out;
}

void perturb_probes_into(const Tensor& out, const Tensor& images, const Tensor& relevance, const Tensor& gradient,
                         const Tensor& norm, const Tensor& probe_image, const Tensor& probe_map,
                         const Tensor& probe_irrelevance, const Tensor& probe_epsilon, const Tensor& probe_level,
                         std::optional<double> lower, std::optional<double> upper) {
  const checks::Bounds bounds =
      checks::perturb_probes_into(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance,
                                  probe_epsilon, probe_level, lower, upper);
  checks::perturb_probes_apart(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance,
                               probe_epsilon, probe_level);
  count_as_written(out);
  write_probes(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance, probe_epsilon,
               probe_level, bounds);
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) {
  APEM_FAST_KERNEL(m, perturb_probes);
  APEM_FAST_KERNEL(m, perturb_probes_into);
}

}  // namespace apem_fast
