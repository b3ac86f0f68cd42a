// Binds relevance_map_kernel.cuh to torch.

#include "binding.h"
#include "relevance_map_kernel.cuh"

namespace apem_fast {
namespace {

Tensor relevance_map(const Tensor& attribution, const std::optional<Tensor>& images, std::optional<double> percentile,
                     std::string channels) {
  checks::relevance_map(attribution, images, percentile, channels);
  const OnDeviceOf device(attribution);
  const MemoryFormat format = image_format(attribution);
  const bool keep = channels == "keep", channels_last = format == MemoryFormat::ChannelsLast;
  const int64_t n = attribution.size(0), c = attribution.size(1), h = attribution.size(2), w = attribution.size(3);
  const int64_t size = c * h * w;
  checks::require(size <= kMostValuesPerImage, "relevance_map", "attribution", "have fewer than 2^32 values per image",
                  shape_of(attribution));
  Tensor out = empty_image(attribution, {n, keep ? c : 1, h, w}, attribution.scalar_type(), format);
  if (attribution.numel() == 0) {
    return torch::stable::zero_(out);
  }
  const Tensor a = torch::stable::contiguous(attribution, format);           // [N, C, H, W]
  const Tensor x = images ? torch::stable::contiguous(*images, format) : a;  // [N, 1 or C, H, W]
  const bool image_per_channel = x.size(1) == c;
  // Where no step looks across channels, the channels are one.
  const Cover cover(c, h * w, keep && image_per_channel ? c : 1, channels_last);

  const bool by_many = is_sampled(size);
  const int64_t room = by_many && percentile ? room_for_candidates(size) : 0;
  const int64_t chunks = by_many ? chunks_of(cover.pixels) : 0;
  const auto scratch = [&](int64_t count, size_t size_of_one) {
    return torch::stable::new_empty(a, {std::max<int64_t>(1, count * static_cast<int64_t>(size_of_one))},
                                    ScalarType::Byte);
  };

  dispatch_floating(attribution.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    using Key = magnitude_key_t<T>;
    const Tensor limit = scratch(by_many ? n : 0, sizeof(A)), bracket = scratch(by_many ? n : 0, sizeof(Bracket<T>));
    const Tensor candidates = scratch(n * room, sizeof(Key)), extent = scratch(n * chunks, sizeof(Extent<A>));
    const auto in = [](const Tensor& bytes) { return static_cast<void*>(mutable_data_of<uint8_t>(bytes)); };
    launch_relevance_map APEM_FAST_BLOCK(
        RelevanceMapArguments<T>{data_of<T>(a), images ? data_of<T>(x) : nullptr, mutable_data_of<T>(out), n, cover,
                                 image_per_channel, keep, percentile.has_value(),
                                 percentile_position(percentile.value_or(0), size), static_cast<A*>(in(limit)),
                                 static_cast<Bracket<T>*>(in(bracket)), static_cast<Key*>(in(candidates)),
                                 static_cast<Extent<A>*>(in(extent)), room, chunks},
        device.stream);
  });
  device.check_launches();
  return out;
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) { APEM_FAST_KERNEL(m, relevance_map); }

}  // namespace apem_fast
