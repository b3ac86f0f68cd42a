// Binds attack_step_kernel.cuh to torch.

#include "attack_step_kernel.cuh"
#include "binding.h"

namespace apem_fast {
namespace {

Tensor attack_step(const Tensor& perturbed, const Tensor& gradient, const std::optional<Tensor>& previous,
                   const std::optional<Tensor>& region, double step_size, double damping, std::optional<double> lower,
                   std::optional<double> upper, const std::optional<Tensor>& original, double zero) {
  const checks::Bounds bounds =
      checks::attack_step(perturbed, gradient, previous, region, lower, upper, original, zero);
  const OnDeviceOf device(perturbed);
  const MemoryFormat format = image_format(perturbed);
  const int64_t n = perturbed.size(0), c = perturbed.size(1), h = perturbed.size(2), w = perturbed.size(3);
  Tensor out = empty_image(perturbed, {n, c, h, w}, perturbed.scalar_type(), format);
  if (out.numel() == 0) {
    return out;
  }
  const auto like_images = [&](const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor, format)) : std::nullopt;
  };
  const Tensor x = torch::stable::contiguous(perturbed, format);  // [N, C, H, W], as the three below
  const Tensor g = torch::stable::contiguous(gradient, format);
  const std::optional<Tensor> before = like_images(previous);
  const std::optional<Tensor> start = zero > 0 ? like_images(original) : std::nullopt;
  const std::optional<Tensor> mask = like_images(region);  // [N or 1, 1 or C, H, W]
  const bool mask_has_channels = mask && mask->size(1) == c;
  // Where no step looks across channels, the channels are one.
  const bool apart = !start && (!mask || mask_has_channels);
  const Cover cover(c, h * w, apart ? c : 1, format == MemoryFormat::ChannelsLast);

  dispatch_floating(perturbed.scalar_type(), [&](auto value) {
    using T = decltype(value);
    launch_attack_step APEM_FAST_BLOCK(
        AttackStepArguments<T>{data_of<T>(x), data_of<T>(g), before ? data_of<T>(*before) : nullptr,
                               start ? data_of<T>(*start) : nullptr, mask ? data_of<uint8_t>(*mask) : nullptr,
                               mutable_data_of<T>(out), n, mask && mask->size(0) > 1 ? mask->numel() / n : 0, cover,
                               mask_has_channels, step_size, damping, bounds.lower, bounds.upper, 2 * step_size * zero},
        device.stream);
  });
  device.check_launches();
  return out;
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) { APEM_FAST_KERNEL(m, attack_step); }

}  // namespace apem_fast
