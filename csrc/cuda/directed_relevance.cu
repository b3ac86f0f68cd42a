// Binds directed_relevance_kernel.cuh to torch.

#include "binding.h"
#include "directed_relevance_kernel.cuh"

namespace apem_fast {
namespace {

Tensor empty_chunks(const Tensor& like, int64_t images, int64_t chunks) {
  return torch::stable::new_empty(like, {images, chunks}, ScalarType::Double);
}

Tensor directed_relevance(const Tensor& relevance, const Tensor& gradient, bool irrelevance) {
  checks::directed_relevance(relevance, gradient);
  const OnDeviceOf device(relevance);
  const MemoryFormat format = image_format(gradient);
  const int64_t n = gradient.size(0), c = gradient.size(1), h = gradient.size(2), w = gradient.size(3);
  Tensor out = empty_image(relevance, {n, c, h, w}, relevance.scalar_type(), format);
  if (out.numel() == 0) {
    return out;
  }
  const Tensor r = torch::stable::contiguous(relevance, format);  // [N, 1 or C, H, W]
  const Tensor g = torch::stable::contiguous(gradient, format);   // [N, C, H, W]
  const Cover cover(c, h * w, r.size(1), format == MemoryFormat::ChannelsLast);
  const int64_t chunks = chunks_of(cover.pixels);
  Tensor norm_chunks = empty_chunks(r, n, chunks);

  dispatch_floating(relevance.scalar_type(), [&](auto value) {
    using T = decltype(value);
    dispatch_gradient<T>(gradient.scalar_type(), [&](auto gradient_value) {
      using G = decltype(gradient_value);
      launch_directed_relevance APEM_FAST_BLOCK(
          DirectedRelevanceArguments<T, G>{data_of<T>(r), data_of<G>(g), mutable_data_of<T>(out),
                                           mutable_data_of<double>(norm_chunks), n, chunks, cover, irrelevance},
          device.stream);
    });
  });
  device.check_launches();
  return out;
}

Tensor directed_relevance_backward(const Tensor& grad_direction, const Tensor& relevance, const Tensor& gradient,
                                   bool irrelevance) {
  checks::directed_relevance_backward(grad_direction, relevance, gradient);
  const OnDeviceOf device(relevance);
  const int64_t n = gradient.size(0), c = gradient.size(1), h = gradient.size(2), w = gradient.size(3);
  // A map without channels has the same memory in both formats: the gradients need not be rearranged for it.
  const MemoryFormat format = image_format(relevance.size(1) == c ? relevance : gradient);
  Tensor out = empty_image(relevance, {n, relevance.size(1), h, w}, relevance.scalar_type(), image_format(relevance));
  if (gradient.numel() == 0) {
    return torch::stable::zero_(out);
  }
  const Tensor grad = torch::stable::contiguous(grad_direction, format);  // [N, C, H, W]
  const Tensor r = torch::stable::contiguous(relevance, format);          // [N, 1 or C, H, W]
  const Tensor g = torch::stable::contiguous(gradient, format);           // [N, C, H, W]
  const Cover cover(c, h * w, r.size(1), format == MemoryFormat::ChannelsLast);
  const int64_t chunks = chunks_of(cover.pixels);
  Tensor norm_chunks = empty_chunks(r, n, chunks), along_chunks = empty_chunks(r, n, chunks);

  dispatch_floating(relevance.scalar_type(), [&](auto value) {
    using T = decltype(value);
    dispatch_gradient<T>(gradient.scalar_type(), [&](auto gradient_value) {
      using G = decltype(gradient_value);
      using A = arithmetic_t<T>;
      // Of the output's own type they lie in the output, value by value.
      const Tensor channel_sums =
          std::is_same_v<A, T> ? out : torch::stable::new_empty(r, {r.numel()}, ScalarType::Float);
      launch_directed_relevance_backward APEM_FAST_BLOCK(
          DirectedRelevanceBackwardArguments<T, G>{
              data_of<T>(grad), data_of<T>(r), data_of<G>(g), mutable_data_of<T>(out), mutable_data_of<A>(channel_sums),
              mutable_data_of<double>(norm_chunks), mutable_data_of<double>(along_chunks), n, chunks, cover,
              irrelevance},
          device.stream);
    });
  });
  device.check_launches();
  return out;
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) {
  APEM_FAST_KERNEL(m, directed_relevance);
  APEM_FAST_KERNEL(m, directed_relevance_backward);
}

}  // namespace apem_fast
