// Packs of pixels with their channels, for kernels that look at a pixel as a whole or at its neighbours: channel by
// channel where the channels are planes, all three at once where they are interleaved.
#pragma once

#include "cover.cuh"

namespace apem_fast {

// How many channels of a pixel are read together, because they lie side by side.
template <Walk kWalk>
constexpr int kTogether = kWalk == Walk::kInterleavedRgb ? 3 : 1;

// A pack's values in the order of memory: pixel i in the t-th of the channels read together is number
// i * kTogether + t, and its neighbour on the right comes kTogether later.
template <typename Access, Walk kWalk, typename V>
struct Pixels {
  static constexpr int kCount = Access::kElements * kTogether<kWalk>;
  V values[kCount];

  APEM_FAST_HOST_DEVICE V& operator[](int k) { return values[k]; }
  APEM_FAST_HOST_DEVICE const V& operator[](int k) const { return values[k]; }
};

// A group is the channels that are read together.
template <Walk kWalk>
APEM_FAST_HOST_DEVICE int64_t groups_of(const Cover& cover) {
  return cover.channels / kTogether<kWalk>;
}

// Where a pixel's first value in a group lies in its image.
template <Walk kWalk>
APEM_FAST_HOST_DEVICE int64_t offset_of(const Cover& cover, int64_t pixel, int64_t group) {
  if constexpr (kWalk == Walk::kPlanes) {
    return group * cover.pixels + pixel;
  } else {
    return pixel * cover.pixel_stride() + group * cover.channel_stride();
  }
}

template <typename Access, Walk kWalk, typename T>
__device__ __forceinline__ Pixels<Access, kWalk, T> load_pixels(const T* from) {
  Pixels<Access, kWalk, T> values;
#pragma unroll
  for (int part = 0; part < kTogether<kWalk>; ++part) {
    const auto loaded = load<Access>(from + part * Access::kElements);
#pragma unroll
    for (int i = 0; i < Access::kElements; ++i) {
      values[part * Access::kElements + i] = loaded[i];
    }
  }
  return values;
}

template <typename Access, Walk kWalk, typename T>
__device__ __forceinline__ void store_pixels(T* to, const Pixels<Access, kWalk, T>& values) {
#pragma unroll
  for (int part = 0; part < kTogether<kWalk>; ++part) {
    typename Access::template Vector<T> stored;
#pragma unroll
    for (int i = 0; i < Access::kElements; ++i) {
      stored[i] = values[part * Access::kElements + i];
    }
    store<Access>(to + part * Access::kElements, stored);
  }
}

// a - b for a pack of pixels.
template <typename Access, Walk kWalk, typename A, typename T>
__device__ __forceinline__ Pixels<Access, kWalk, A> load_differences(const T* a, const T* b) {
  const auto of_a = load_pixels<Access, kWalk>(a);
  const auto of_b = load_pixels<Access, kWalk>(b);
  Pixels<Access, kWalk, A> difference;
#pragma unroll
  for (int k = 0; k < difference.kCount; ++k) {
    difference[k] = static_cast<A>(of_a[k]) - static_cast<A>(of_b[k]);
  }
  return difference;
}

// Calls `run(access, walk)` with the types of the fastest way through these images, none of whose packs reaches over
// the end of a row of `row` pixels. A null pointer fits everywhere.
template <typename Narrowest, int kBlock, typename Run, typename... Images>
void choose_pixels(const Cover& cover, int64_t row, const Run& run, const Images*... images) {
  using Vector = Access<Narrowest, kBlock, true>;
  using Scalar = Access<Narrowest, kBlock, false>;
  const bool fits = fits_vectors(Vector::kElements, row, images...);
  if (fits && !cover.interleaved) {
    run(Vector{}, std::integral_constant<Walk, Walk::kPlanes>{});
  } else if (fits && cover.channels == 3) {
    run(Vector{}, std::integral_constant<Walk, Walk::kInterleavedRgb>{});
  } else {
    run(Scalar{}, std::integral_constant<Walk, Walk::kPixels>{});
  }
}

}  // namespace apem_fast
