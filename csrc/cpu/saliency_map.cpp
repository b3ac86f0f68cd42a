// saliency_map on the CPU: the distances of an image's pixels and their range in one pass, the rescaling in another
// over a channel's worth of values.

#include "tiles.h"

#include <cmath>

namespace apem_fast {
namespace {

constexpr int64_t kTilePixels = 2048;

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void squares(A* square, const T* original, const T* perturbed, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const A difference = static_cast<A>(original[i]) - static_cast<A>(perturbed[i]);
    square[i] = difference * difference;
  }
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void add_squares(A* sum, const T* original, const T* perturbed, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const A difference = static_cast<A>(original[i]) - static_cast<A>(perturbed[i]);
    sum[i] += difference * difference;
  }
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void sum_squares_of_pixels(A* sum, const T* original, const T* perturbed, int64_t count,
                                                     int64_t channels) {
  const auto square = [=](int64_t i) {
    const A difference = static_cast<A>(original[i]) - static_cast<A>(perturbed[i]);
    return difference * difference;
  };
  if (channels == 3) {
    for (int64_t p = 0; p < count; ++p) {
      sum[p] = square(3 * p) + square(3 * p + 1) + square(3 * p + 2);
    }
    return;
  }
  for (int64_t p = 0; p < count; ++p) {
    A total = A(0);
    for (int64_t c = 0; c < channels; ++c) {
      total += square(p * channels + c);
    }
    sum[p] = total;
  }
}

// In lanes, because a compiler may not reorder comparisons of its own accord.
template <typename A>
APEM_FAST_VECTOR_VERSIONS Extent<A> root_and_extent(A* value, int64_t count) {
  A low[kLanes], high[kLanes];
  int32_t missing[kLanes] = {};
  std::fill(low, low + kLanes, no_values<A>().low);
  std::fill(high, high + kLanes, no_values<A>().high);
  const auto take = [&](int64_t i, int l) {
    const A root = std::sqrt(value[i]);
    value[i] = root;
    low[l] = root < low[l] ? root : low[l];
    high[l] = root > high[l] ? root : high[l];
    missing[l] |= root != root ? 1 : 0;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      take(i + l, l);
    }
  }
  for (; i < count; ++i) {
    take(i, 0);
  }
  Extent<A> extent = no_values<A>();
  for (int l = 0; l < kLanes; ++l) {
    extent = merged(extent, Extent<A>{low[l], high[l], missing[l] != 0});
  }
  return extent;
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void rescale(T* out, const A* value, int64_t count, Extent<A> extent) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<T>(rescaled(value[i], extent));
  }
}

Tensor saliency_map(const Tensor& original, const Tensor& perturbed) {
  checks::saliency_map(original, perturbed);
  const MemoryFormat format = image_format(original);
  const int64_t n = original.size(0), channels = original.size(1), pixels = original.size(2) * original.size(3);
  Tensor out = empty_output(original, {n, 1, original.size(2), original.size(3)}, original.scalar_type(), format);
  if (original.numel() == 0) {
    return torch::stable::zero_(out);  // without channels nothing changed
  }
  const Tensor a = torch::stable::contiguous(original, format);   // [N, C, H, W]
  const Tensor b = torch::stable::contiguous(perturbed, format);  // [N, C, H, W]
  const bool channels_last = format == MemoryFormat::ChannelsLast;
  const int64_t tiles = (pixels + kTilePixels - 1) / kTilePixels;
  dispatch_floating(original.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    // Distances wait in the output, where it is of their type.
    constexpr bool kInPlace = std::is_same_v<T, A>;
    AlignedBuffer<A> buffer(kInPlace ? 0 : n * pixels);
    const T *from_a = data_of<T>(a), *from_b = data_of<T>(b);
    T* to = mutable_data_of<T>(out);
    A* distance = kInPlace ? reinterpret_cast<A*>(to) : buffer.data();
    std::vector<Extent<A>> extent(n * tiles), whole(n, no_values<A>());
    const int64_t grain = std::max<int64_t>(1, kGrainValues / (kTilePixels * channels));
    torch::stable::parallel_for(0, n * tiles, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t image = i / tiles, begin = i % tiles * kTilePixels;
        const int64_t count = std::min(kTilePixels, pixels - begin), at = image * channels * pixels;
        A* sum = distance + image * pixels + begin;
        if (channels_last) {
          const int64_t from = at + begin * channels;
          sum_squares_of_pixels(sum, from_a + from, from_b + from, count, channels);
        } else {
          squares(sum, from_a + at + begin, from_b + at + begin, count);
          for (int64_t c = 1; c < channels; ++c) {
            const int64_t from = at + c * pixels + begin;
            add_squares(sum, from_a + from, from_b + from, count);
          }
        }
        extent[i] = root_and_extent(sum, count);
      }
    });
    for (int64_t i = 0; i < n * tiles; ++i) {
      whole[i / tiles] = merged(whole[i / tiles], extent[i]);
    }
    torch::stable::parallel_for(0, n * tiles, grain, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t image = i / tiles, begin = i % tiles * kTilePixels, at = image * pixels + begin;
        rescale(to + at, distance + at, std::min(kTilePixels, pixels - begin), whole[image]);
      }
    });
  });
  return out;
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) { APEM_FAST_KERNEL(m, saliency_map); }

}  // namespace apem_fast
