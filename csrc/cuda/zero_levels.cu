// Binds zero_levels_kernel.cuh to torch.

#include "binding.h"
#include "zero_levels_kernel.cuh"

#include <tuple>

namespace apem_fast {
namespace {

std::tuple<Tensor, Tensor> zero_levels(const Tensor& relevance, const Tensor& threshold) {
  checks::zero_levels(relevance, threshold);
  const OnDeviceOf device(relevance);
  const MemoryFormat format = image_format(relevance);
  const int64_t n = relevance.size(0), levels = threshold.size(threshold.dim() - 1);
  const int64_t c = relevance.size(1), h = relevance.size(2), w = relevance.size(3);
  Tensor out = empty_image(relevance, {n * levels, c, h, w}, relevance.scalar_type(), format);
  Tensor norms = empty_image(relevance, {n, levels, 2}, ScalarType::Double, MemoryFormat::Contiguous);
  const Tensor result = torch::stable::view(out, {n, levels, c, h, w});
  const Tensor r = torch::stable::contiguous(relevance, format);  // [N, C', H, W]
  const Tensor t = torch::stable::contiguous(threshold);          // [L] or [N, L]

  dispatch_floating(relevance.scalar_type(), [&](auto value) {
    using T = decltype(value);
    const auto run = [&](auto threshold_value) {
      using E = decltype(threshold_value);
      launch_zero_levels APEM_FAST_BLOCK(
          ZeroLevelsArguments<T, E>{data_of<T>(r), data_of<E>(t), mutable_data_of<T>(out),
                                    mutable_data_of<double>(norms), n, levels, c * h * w,
                                    threshold.dim() == 2 ? levels : 0},
          device.stream);
    };
    threshold.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  });
  device.check_launches();
  return {result, norms};
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) { APEM_FAST_KERNEL(m, zero_levels); }

}  // namespace apem_fast
