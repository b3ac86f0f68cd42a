// relevance_map on CUDA: a block for each image, from the attribution to the finished map.
//
// One block, because the percentile, then the extrema, then the rescaling each need all of the image before the next
// can start: several blocks would have to meet in between, in one launch more for each pass. A map is made once where
// its rays take hundreds of probes, and a batch of images fills the device with a block each. The images of a small
// batch lie in the second-level cache after the first pass; those of a large one are read again in every pass.
//
// The percentile is selected, not sorted: each pass counts one digit of the keys (math.h) in a histogram of integers,
// so that the result does not depend on the order of the threads.
#pragma once

#include "cover.cuh"
#include "reduction.cuh"

namespace apem_fast {

// Counts are of 32 bits.
constexpr int64_t kMostValuesPerImage = 4294967295;

template <typename T>
struct RelevanceMapArguments {
  const T* attribution;  // [N, channels * cover.pixels]
  const T* images;       // nullptr, or [N, cover.pixels] (image_per_channel false), or as attribution
  T* out;                // [N, cover.pixels] (keep false) or as attribution
  int64_t N;
  Cover cover;
  bool image_per_channel, keep, clip;
  PercentilePosition position;  // of the limit; unused without clip
};

template <typename Access, typename T, typename Visit>
__device__ __forceinline__ void visit_keys(const T* row, int64_t size, const Visit& visit) {
#pragma unroll 2
  for (int64_t i = int64_t{threadIdx.x} * Access::kElements; i < size; i += Access::kBlock * Access::kElements) {
    const auto values = load<Access>(row + i);
#pragma unroll
    for (int e = 0; e < Access::kElements; ++e) {
      visit(magnitude_key(values[e]));
    }
  }
}

// The magnitude at which an image is clipped: a percentile of the magnitudes in its row.
template <typename Access, typename T>
__device__ arithmetic_t<T> limit_of_row(const T* row, int64_t size, const PercentilePosition& position) {
  using Key = magnitude_key_t<T>;
  using WideKey = std::conditional_t<sizeof(Key) == 8, unsigned long long, unsigned>;
  constexpr int kDigits = 1 << kDigitBits, kPerThread = kDigits / Access::kBlock;
  static_assert(kPerThread * Access::kBlock == kDigits);
  __shared__ unsigned histogram[kDigits];
  __shared__ Digit found;

  Key low = 0;                    // its digits at `settled` and above are known
  int64_t rank = position.below;  // among the keys that share those digits
  for (int settled = kKeyBits<T>; settled > 0;) {
    const int shift = next_shift(settled), bits = settled - shift;
    for (int digit = threadIdx.x; digit < kDigits; digit += Access::kBlock) {
      histogram[digit] = 0;
    }
    __syncthreads();
    visit_keys<Access>(row, size, [&](Key key) {
      if ((key >> settled) == (low >> settled)) {
        atomicAdd(&histogram[digit_at(key, shift, bits)], 1u);
      }
    });
    __syncthreads();
    const unsigned* own = histogram + threadIdx.x * kPerThread;
    unsigned count = 0;
    for (int digit = 0; digit < kPerThread; ++digit) {
      count += own[digit];
    }
    const int64_t before = block_exclusive_sum<Access::kBlock>(count);
    if (before <= rank && rank < before + count) {  // in exactly one thread
      found = digit_of_rank(own, kPerThread, rank - before);
      found.digit += threadIdx.x * kPerThread;
    }
    __syncthreads();
    low = static_cast<Key>(low | static_cast<Key>(Key(found.digit) << shift));
    rank = found.rank;
    settled = shift;  // the histogram was last read before the barrier, so the next pass may clear it
  }

  using A = arithmetic_t<T>;
  const A at_low = static_cast<A>(value_of_key<T>(low));
  if (position.fraction == 0) {
    return at_low;
  }
  const int last_bits = kKeyBits<T> % kDigitBits == 0 ? kDigitBits : kKeyBits<T> % kDigitBits;
  Key high = low;
  if (rank + 1 >= static_cast<int64_t>(histogram[digit_at(low, 0, last_bits)])) {  // no second value equals the first
    WideKey least = std::numeric_limits<WideKey>::max();
    visit_keys<Access>(row, size, [&](Key key) { least = key > low && key < least ? key : least; });
    least = block_reduce<Access::kBlock>(least, [](WideKey x, WideKey y) { return x < y ? x : y; });
    high = static_cast<Key>(least);
  }
  return interpolated(at_low, static_cast<A>(value_of_key<T>(high)), position.fraction);
}

// Calls `visit(offset, values)` for each pack of the map before it is rescaled.
template <typename Access, typename T, typename Visit>
__device__ __forceinline__ void visit_products(const RelevanceMapArguments<T>& a, int64_t n, arithmetic_t<T> limit,
                                               const Visit& visit) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements;
  const T* attribution = a.attribution + n * a.cover.image_size();
  const T* image = a.images + n * (a.image_per_channel ? a.cover.image_size() : a.cover.pixels);
  const int64_t pixel_stride = kElements > 1 ? 1 : a.cover.pixel_stride();
  const int64_t channel_stride = kElements > 1 ? a.cover.pixels : a.cover.channel_stride();
  for (int64_t pixel = int64_t{threadIdx.x} * kElements; pixel < a.cover.pixels; pixel += Access::kBlock * kElements) {
    Pack<A, kElements> total;
    visit_each(a.cover.channels, [&](int64_t c) {
      const int64_t offset = pixel * pixel_stride + c * channel_stride;
      const auto raw = load<Access>(attribution + offset);
      Pack<A, kElements> values;
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        values[i] = clipped_magnitude(static_cast<A>(raw[i]), limit);
      }
      if (a.images != nullptr) {
        const auto factor = load<Access>(image + (a.image_per_channel ? offset : pixel));
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          values[i] = values[i] * static_cast<A>(factor[i]);
        }
      }
      if (a.keep) {
        visit(offset, values);
      }
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        total[i] = c == 0 ? values[i] : total[i] + values[i];
      }
    });
    if (!a.keep) {
      visit(pixel, total);
    }
  }
}

template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128)
    relevance_map_kernel(RelevanceMapArguments<T> a) {
  using A = arithmetic_t<T>;
  for (int64_t n = blockIdx.x; n < a.N; n += gridDim.x) {
    A limit = std::numeric_limits<A>::infinity();
    if (a.clip) {
      limit = limit_of_row<Access>(a.attribution + n * a.cover.image_size(), a.cover.image_size(), a.position);
    }
    Extent<A> extent = no_values<A>();
    visit_products<Access>(a, n, limit, [&](int64_t, const Pack<A, Access::kElements>& values) {
#pragma unroll
      for (int i = 0; i < Access::kElements; ++i) {
        extent = with_value(extent, values[i]);
      }
    });
    // This also keeps the next image's selection from clearing what this one's still reads.
    extent = block_reduce<Access::kBlock>(extent, [](const Extent<A>& x, const Extent<A>& y) { return merged(x, y); });
    T* out = a.out + n * (a.keep ? a.cover.image_size() : a.cover.pixels);
    visit_products<Access>(a, n, limit, [&](int64_t offset, const Pack<A, Access::kElements>& values) {
      typename Access::template Vector<T> result;
#pragma unroll
      for (int i = 0; i < Access::kElements; ++i) {
        result[i] = static_cast<T>(rescaled(values[i], extent));
      }
      store<Access>(out + offset, result);
    });
  }
}

template <int kBlock = 512, typename T>
void launch_relevance_map(const RelevanceMapArguments<T>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    launch(relevance_map_kernel<decltype(access), T>, arguments.N, 1, 1, kBlock, stream, arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (!arguments.cover.interleaved &&
      fits_vectors(Vector::kElements, arguments.cover.pixels, arguments.attribution, arguments.images, arguments.out)) {
    run(Vector{});
  } else {
    run(Access<T, kBlock, false>{});
  }
}

}  // namespace apem_fast
