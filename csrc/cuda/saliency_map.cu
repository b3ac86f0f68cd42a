// Binds saliency_map_kernel.cuh to torch.

#include "binding.h"
#include "saliency_map_kernel.cuh"

namespace apem_fast {
namespace {

Tensor saliency_map(const Tensor& original, const Tensor& perturbed) {
  checks::saliency_map(original, perturbed);
  const OnDeviceOf device(original);
  const MemoryFormat format = image_format(original);
  const int64_t n = original.size(0), c = original.size(1), h = original.size(2), w = original.size(3);
  Tensor out = empty_image(original, {n, 1, h, w}, original.scalar_type(), format);
  if (original.numel() == 0) {
    return torch::stable::zero_(out);  // without channels nothing changed
  }
  const Tensor a = torch::stable::contiguous(original, format);   // [N, C, H, W]
  const Tensor b = torch::stable::contiguous(perturbed, format);  // [N, C, H, W]
  const Cover cover(c, h * w, 1, format == MemoryFormat::ChannelsLast);
  const int64_t chunks = chunks_of(cover.pixels);

  dispatch_floating(original.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const int64_t at_once = images_at_once<T>(cover, n);
    const int64_t extent_bytes = at_once * chunks * static_cast<int64_t>(sizeof(Extent<A>));
    Tensor distance = torch::stable::new_empty(a, {at_once, h * w},
                                               std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float);
    Tensor chunk_extents = torch::stable::new_empty(a, {extent_bytes}, ScalarType::Byte);
    launch_saliency_map APEM_FAST_BLOCK(
        SaliencyMapArguments<T>{data_of<T>(a), data_of<T>(b), mutable_data_of<A>(distance),
                                reinterpret_cast<Extent<A>*>(mutable_data_of<uint8_t>(chunk_extents)),
                                mutable_data_of<T>(out), n, chunks, cover},
        device.stream);
  });
  device.check_launches();
  return out;
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) { APEM_FAST_KERNEL(m, saliency_map); }

}  // namespace apem_fast
