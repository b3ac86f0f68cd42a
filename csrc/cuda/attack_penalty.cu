// Binds attack_penalty_kernel.cuh to torch.

#include "attack_penalty_kernel.cuh"
#include "binding.h"

#include <tuple>

namespace apem_fast {
namespace {

static_assert(sizeof(PenaltyTerms) == 3 * sizeof(double), "a row of a tensor of three columns");

PenaltyTerms* rows_of(const Tensor& terms) { return reinterpret_cast<PenaltyTerms*>(mutable_data_of<double>(terms)); }

std::tuple<Tensor, Tensor> attack_penalty(const Tensor& perturbed, const Tensor& original, double tv, double zero,
                                          double diff) {
  checks::attack_penalty(perturbed, original);
  const OnDeviceOf device(perturbed);
  const MemoryFormat format = image_format(perturbed);
  const int64_t n = perturbed.size(0), c = perturbed.size(1), h = perturbed.size(2), w = perturbed.size(3);
  const Tensor x = torch::stable::contiguous(perturbed, format);  // [N, C, H, W]
  const Tensor o = torch::stable::contiguous(original, format);   // [N, C, H, W]
  const Cover cover(c, h * w, 1, format == MemoryFormat::ChannelsLast);
  const int64_t chunks = chunks_of(cover.pixels);
  Tensor penalty = torch::stable::new_empty(x, {n}, ScalarType::Double);
  Tensor terms = torch::stable::new_empty(x, {n, 3}, ScalarType::Double);
  Tensor chunk_terms = torch::stable::new_empty(x, {n, chunks, 3}, ScalarType::Double);

  dispatch_floating(perturbed.scalar_type(), [&](auto value) {
    using T = decltype(value);
    launch_attack_penalty APEM_FAST_BLOCK(
        AttackPenaltyArguments<T>{data_of<T>(x), data_of<T>(o), rows_of(chunk_terms), rows_of(terms),
                                  mutable_data_of<double>(penalty), n, chunks, w, cover, tv, zero, diff},
        device.stream);
  });
  device.check_launches();
  return {penalty, terms};
}

Tensor attack_penalty_backward(const Tensor& grad_penalty, const Tensor& perturbed, const Tensor& original, double tv,
                               double zero, double diff) {
  checks::attack_penalty_backward(grad_penalty, perturbed, original);
  const OnDeviceOf device(perturbed);
  const MemoryFormat format = image_format(perturbed);
  const int64_t n = perturbed.size(0), c = perturbed.size(1), h = perturbed.size(2), w = perturbed.size(3);
  Tensor out = empty_image(perturbed, {n, c, h, w}, perturbed.scalar_type(), format);
  if (out.numel() == 0) {
    return out;
  }
  const Tensor x = torch::stable::contiguous(perturbed, format);  // [N, C, H, W]
  const Tensor o = torch::stable::contiguous(original, format);   // [N, C, H, W]
  const Tensor g = torch::stable::contiguous(grad_penalty);       // [N]
  const Cover cover(c, h * w, 1, format == MemoryFormat::ChannelsLast);

  dispatch_floating(perturbed.scalar_type(), [&](auto value) {
    using T = decltype(value);
    launch_attack_penalty_backward APEM_FAST_BLOCK(
        AttackPenaltyBackwardArguments<T>{data_of<double>(g), data_of<T>(x), data_of<T>(o), mutable_data_of<T>(out), n,
                                          w, cover, tv, diff},
        device.stream);
  });
  device.check_launches();
  return out;
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) {
  APEM_FAST_KERNEL(m, attack_penalty);
  APEM_FAST_KERNEL(m, attack_penalty_backward);
}

}  // namespace apem_fast
