// How a relevance map lies over an image, and the walk over both that directed_relevance and perturb_probes share: a
// value is formed once for each value of the map and then used for all the channels it covers.
#pragma once

#include "access.cuh"

namespace apem_fast {

// A map with channels of its own covers its image value by value, in whatever order they are stored: that is one
// channel of C * H * W pixels. A map without channels covers C channels of H * W pixels, which lie one after the other
// or, in channels-last, interleaved.
struct Cover {
  int64_t channels, pixels;
  bool interleaved;

  Cover(int64_t image_channels, int64_t image_pixels, int64_t map_channels, bool channels_last)
      : channels(map_channels == image_channels ? 1 : image_channels),
        pixels(map_channels == image_channels ? image_channels * image_pixels : image_pixels),
        interleaved(channels_last && channels > 1) {}

  APEM_FAST_HOST_DEVICE int64_t image_size() const { return channels * pixels; }
  APEM_FAST_HOST_DEVICE int64_t pixel_stride() const { return interleaved ? channels : 1; }
  APEM_FAST_HOST_DEVICE int64_t channel_stride() const { return interleaved ? 1 : pixels; }
};

// Calls `visit(channel)` for so many channels. Three is a number the compiler knows: it loads all of them before it
// stores one.
template <typename Visit>
__device__ __forceinline__ void visit_each(int64_t channels, const Visit& visit) {
  if (channels == 3) {
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      visit(c);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      visit(c);
    }
  }
}

enum class Walk {
  kPlanes,          // packs of pixels, plane by plane
  kInterleavedRgb,  // packs of an image of three interleaved channels
  kPixels,          // pixel by pixel, at any strides
};

// How many items of work an image is.
template <typename Access, Walk kWalk>
APEM_FAST_HOST_DEVICE int64_t items_of(const Cover& cover) {
  return (kWalk == Walk::kInterleavedRgb ? 3 : 1) * cover.pixels / Access::kElements;
}

// One item: `value_of(map value)` gives a value of type A, and `apply(offset, values)` is called for each pack of the
// image at that offset, with the values that belong to its elements.
template <typename Access, Walk kWalk, typename A, typename T, typename ValueOf, typename Apply>
__device__ __forceinline__ void walk_item(const Cover& cover, int64_t item, const T* map, const ValueOf& value_of,
                                          const Apply& apply) {
  constexpr int kElements = Access::kElements;
  Pack<A, kElements> values;
  if constexpr (kWalk == Walk::kInterleavedRgb) {
    // A pack begins at channel 0, 1 or 2 of its first pixel and reaches into at most kSpan pixels.
    constexpr int kSpan = (kElements + 1) / 3 + 1;
    const int64_t offset = item * kElements, first_pixel = offset / 3;
    const int first_channel = static_cast<int>(offset - first_pixel * 3);
    A of_pixel[kSpan];
#pragma unroll
    for (int s = 0; s < kSpan; ++s) {
      const int64_t pixel = first_pixel + s < cover.pixels ? first_pixel + s : first_pixel;
      of_pixel[s] = value_of(load<Single<Access, T>>(map + pixel)[0]);
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      // (first_channel + i) / 3, with indices the compiler knows: others would put the array into local memory.
      const int least = i / 3;
      const bool next = first_channel + i % 3 >= 3;
      values[i] = least + 1 < kSpan && next ? of_pixel[least + 1 < kSpan ? least + 1 : least] : of_pixel[least];
    }
    apply(offset, values);
  } else {
    const int64_t pixel = item * kElements;
    const auto raw = load<Access>(map + pixel);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      values[i] = value_of(raw[i]);
    }
    const int64_t pixel_stride = kWalk == Walk::kPlanes ? 1 : cover.pixel_stride();
    const int64_t channel_stride = kWalk == Walk::kPlanes ? cover.pixels : cover.channel_stride();
    visit_each(cover.channels, [&](int64_t c) { apply(pixel * pixel_stride + c * channel_stride, values); });
  }
}

// Calls `run(access, walk)` with the types of the fastest walk that these pointers allow. The map's rows are of
// `cover.pixels` elements, the images' of `cover.image_size()`.
template <typename Narrowest, int kBlock, typename Run, typename T, typename... Images>
void choose_walk(const Cover& cover, const Run& run, const T* map, const Images*... images) {
  using Vector = Access<Narrowest, kBlock, true>;
  using Scalar = Access<Narrowest, kBlock, false>;
  if (cover.interleaved) {
    if (cover.channels == 3 && fits_vectors(Vector::kElements, cover.image_size(), images...)) {
      return run(Vector{}, std::integral_constant<Walk, Walk::kInterleavedRgb>{});
    }
  } else if (fits_vectors(Vector::kElements, cover.pixels, map, images...)) {
    return run(Vector{}, std::integral_constant<Walk, Walk::kPlanes>{});
  }
  run(Scalar{}, std::integral_constant<Walk, Walk::kPixels>{});
}

}  // namespace apem_fast
