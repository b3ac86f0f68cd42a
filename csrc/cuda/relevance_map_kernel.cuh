// relevance_map on CUDA: from the attribution to the finished map, on the one side of the percentile and on the other.
//
// The percentile, then the extrema, then the rescaling each need all of an image before the next can start. Small
// images are a block each for all of it, which finds them in the second-level cache after the first time. Large ones
// are worked at by many blocks each, in a kernel for each step: the percentile (percentile.cuh), the products with
// their extrema chunk by chunk, and the rescaling, which walks the images backwards, so that what was written last is
// still cached.
#pragma once

#include "cover.cuh"
#include "percentile.cuh"

namespace apem_fast {

template <typename T>
struct RelevanceMapArguments {
  const T* attribution;  // [N, channels * cover.pixels]
  const T* images;       // nullptr, or [N, cover.pixels] (image_per_channel false), or as attribution
  T* out;                // [N, cover.pixels] (keep false) or as attribution
  int64_t N;
  Cover cover;
  bool image_per_channel, keep, clip;
  PercentilePosition position;  // of the limit; unused without clip
  // Scratch, for large images only.
  arithmetic_t<T>* limit;           // [N]
  Bracket<T>* bracket;              // [N]
  magnitude_key_t<T>* candidates;   // [N, room]
  Extent<arithmetic_t<T>>* extent;  // [N, chunks]
  int64_t room, chunks;
};

// Whether the steps have kernels of their own.
template <typename T>
bool is_worked_at_by_many(const RelevanceMapArguments<T>& a) {
  return is_sampled(a.cover.image_size());
}

// Calls `visit(offset, values)` for what a pack of pixels gives the map before it is rescaled.
template <typename Access, typename T, typename Visit>
__device__ __forceinline__ void visit_products(const RelevanceMapArguments<T>& a, int64_t n, int64_t item,
                                               arithmetic_t<T> limit, const Visit& visit) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements;
  const T* attribution = a.attribution + n * a.cover.image_size();
  const T* image = a.images + n * (a.image_per_channel ? a.cover.image_size() : a.cover.pixels);
  const int64_t pixel_stride = kElements > 1 ? 1 : a.cover.pixel_stride();
  const int64_t channel_stride = kElements > 1 ? a.cover.pixels : a.cover.channel_stride();
  const int64_t pixel = item * kElements;
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

template <int kElements, typename A>
__device__ __forceinline__ Extent<A> with_pack(Extent<A> extent, const Pack<A, kElements>& values) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    extent = with_value(extent, values[i]);
  }
  return extent;
}

template <typename Access, typename T, typename A>
__device__ __forceinline__ void store_rescaled(T* to, const Pack<A, Access::kElements>& values,
                                               const Extent<A>& extent) {
  typename Access::template Vector<T> result;
#pragma unroll
  for (int i = 0; i < Access::kElements; ++i) {
    result[i] = static_cast<T>(rescaled(values[i], extent));
  }
  store<Access>(to, result);
}

// All of a small image, by one block.
template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128)
    relevance_map_kernel(RelevanceMapArguments<T> a) {
  using A = arithmetic_t<T>;
  using Values = Pack<A, Access::kElements>;
  const int64_t items = a.cover.pixels / Access::kElements;
  for (int64_t n = blockIdx.x; n < a.N; n += gridDim.x) {
    A limit = std::numeric_limits<A>::infinity();
    if (a.clip) {
      limit = percentile_of_row<Access>(a.attribution + n * a.cover.image_size(), a.cover.image_size(), a.position);
    }
    Extent<A> extent = no_values<A>();
    for (int64_t item = threadIdx.x; item < items; item += Access::kBlock) {
      visit_products<Access>(a, n, item, limit,
                             [&](int64_t, const Values& values) { extent = with_pack(extent, values); });
    }
    // This also keeps the next image's selection from clearing what this one's still reads.
    extent = block_reduce<Access::kBlock>(extent, [](const Extent<A>& x, const Extent<A>& y) { return merged(x, y); });
    T* out = a.out + n * (a.keep ? a.cover.image_size() : a.cover.pixels);
    for (int64_t item = threadIdx.x; item < items; item += Access::kBlock) {
      visit_products<Access>(a, n, item, limit, [&](int64_t offset, const Values& values) {
        store_rescaled<Access>(out + offset, values, extent);
      });
    }
  }
}

// Whether products are written where the map is to be and rescaled there: forming them again would read more.
template <typename T>
constexpr bool kProductsAreExact = std::is_same_v<T, arithmetic_t<T>>;

// Double precision needs more registers than there are for four blocks of 256 threads.
template <typename Access, typename T>
constexpr int kBlocksOfMany = std::is_same_v<T, double> ? Access::kBlocksOf128 : Access::kBlocksOf64;

// The products' extrema, chunk by chunk, and the products themselves where they are rescaled in place.
template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, kBlocksOfMany<Access, T>) product_kernel(RelevanceMapArguments<T> a) {
  using A = arithmetic_t<T>;
  const int64_t items = a.cover.pixels / Access::kElements;
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    const A limit = a.clip ? a.limit[n] : std::numeric_limits<A>::infinity();
    for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
      Extent<A> extent = no_values<A>();
      visit_chunk<Access::kBlock>(items, a.chunks, chunk, [&](int64_t item) {
        visit_products<Access>(a, n, item, limit, [&](int64_t offset, const Pack<A, Access::kElements>& values) {
          extent = with_pack(extent, values);
          if constexpr (kProductsAreExact<T>) {
            if (!a.keep) {
              store<Access>(a.out + n * a.cover.pixels + offset, values);
            }
          }
        });
      });
      extent =
          block_reduce<Access::kBlock>(extent, [](const Extent<A>& x, const Extent<A>& y) { return merged(x, y); });
      if (threadIdx.x == 0) {
        a.extent[n * a.chunks + chunk] = extent;
      }
    }
  }
}

// The last image first, and of it the last chunk.
template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, kBlocksOfMany<Access, T>) rescale_kernel(RelevanceMapArguments<T> a) {
  using A = arithmetic_t<T>;
  using Values = Pack<A, Access::kElements>;
  const int64_t items = a.cover.pixels / Access::kElements;
  for (int64_t before = blockIdx.y; before < a.N; before += gridDim.y) {
    const int64_t n = a.N - 1 - before;
    Extent<A> extent = no_values<A>();
#pragma unroll 8
    for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
      extent = merged(extent, a.extent[n * a.chunks + chunk]);
    }
    T* out = a.out + n * (a.keep ? a.cover.image_size() : a.cover.pixels);
    if constexpr (kProductsAreExact<T>) {
      if (!a.keep) {
        for (int64_t item = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x; item < items;
             item += int64_t{gridDim.x} * Access::kBlock) {
          T* own = out + (items - 1 - item) * Access::kElements;
          store_rescaled<Access>(own, load_own<Access>(own), extent);
        }
        continue;
      }
    }
    const A limit = a.clip ? a.limit[n] : std::numeric_limits<A>::infinity();
    for (int64_t item = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x; item < items;
         item += int64_t{gridDim.x} * Access::kBlock) {
      visit_products<Access>(a, n, items - 1 - item, limit, [&](int64_t offset, const Values& values) {
        store_rescaled<Access>(out + offset, values, extent);
      });
    }
  }
}

template <int kBlock = 512, typename T>
void launch_relevance_map(const RelevanceMapArguments<T>& a, cudaStream_t stream) {
  constexpr int kOfMany = kBlock < 256 ? kBlock : 256;
  const bool vectors = !a.cover.interleaved &&
                       fits_vectors(Access<T, kBlock, true>::kElements, a.cover.pixels, a.attribution, a.images, a.out);
  if (!is_worked_at_by_many(a)) {
    const auto run = [&](auto access) {
      launch(relevance_map_kernel<decltype(access), T>, a.N, 1, 1, kBlock, stream, a);
    };
    vectors ? run(Access<T, kBlock, true>{}) : run(Access<T, kBlock, false>{});
    return;
  }
  if (a.clip) {
    launch_percentile<kBlock, kOfMany, T>(
        {a.attribution, a.limit, a.bracket, a.candidates, a.N, a.cover.image_size(), a.room, 0, a.position, 0, 0, 0, 0},
        stream);
  }
  const auto run = [&](auto access) {
    using Access = decltype(access);
    launch(product_kernel<Access, T>, a.chunks, a.N, 1, kOfMany, stream, a);
    launch(rescale_kernel<Access, T>, ceil_div(a.cover.pixels / Access::kElements, kOfMany), a.N, 1, kOfMany, stream,
           a);
  };
  vectors ? run(Access<T, kOfMany, true>{}) : run(Access<T, kOfMany, false>{});
}

}  // namespace apem_fast
