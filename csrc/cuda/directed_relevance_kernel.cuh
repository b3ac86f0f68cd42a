// directed_relevance and its backward on CUDA. The l1 norm of each map is summed in float64: first over fixed chunks,
// one block each, then over the chunks in their order, by every block that needs the norm. So no sum depends on which
// block ran first, and nothing is read back to the host.
#pragma once

#include "chunks.cuh"
#include "cover.cuh"
#include "reduction.cuh"

namespace apem_fast {

// Sums that were gathered chunk by chunk.
template <typename A>
__device__ __forceinline__ A total_of(const double* chunk_sums, int64_t chunks, int64_t repeats) {
  double sum = 0;
#pragma unroll 8
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    sum += chunk_sums[chunk];
  }
  return static_cast<A>(sum * static_cast<double>(repeats));
}

template <typename T>
struct MapNormArguments {
  const T* relevance;  // [N, pixels]
  double* chunk_sums;  // [N, chunks]
  int64_t N, pixels, chunks;
  bool irrelevance;
};

template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64) map_norm_kernel(MapNormArguments<T> a) {
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
      double sum = 0;
      visit_chunk<Access::kBlock>(a.pixels / Access::kElements, a.chunks, chunk, [&](int64_t item) {
        const auto values = load<Access>(a.relevance + n * a.pixels + item * Access::kElements);
#pragma unroll
        for (int i = 0; i < Access::kElements; ++i) {
          sum += fabs(static_cast<double>(applied_relevance(static_cast<arithmetic_t<T>>(values[i]), a.irrelevance)));
        }
      });
      sum = block_reduce<Access::kBlock>(sum, [](double x, double y) { return x + y; });
      if (threadIdx.x == 0) {
        a.chunk_sums[n * a.chunks + chunk] = sum;
      }
    }
  }
}

template <int kBlock, typename T>
void launch_map_norm(const MapNormArguments<T>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    launch(map_norm_kernel<decltype(access), T>, arguments.chunks, arguments.N, 1, kBlock, stream, arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (fits_vectors(Vector::kElements, arguments.pixels, arguments.relevance)) {
    run(Vector{});
  } else {
    run(Access<T, kBlock, false>{});
  }
}

template <typename T, typename G>
struct DirectedRelevanceArguments {
  const T* relevance;   // [N, cover.pixels]
  const G* gradient;    // [N, cover.image_size()]
  T* direction;         // as gradient
  double* norm_chunks;  // [N, chunks], written and read
  int64_t N, chunks;
  Cover cover;
  bool irrelevance;
};

template <typename Access, Walk kWalk, typename T, typename G>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64)
    directed_relevance_kernel(DirectedRelevanceArguments<T, G> a) {
  using A = arithmetic_t<T>;
  const int64_t items = items_of<Access, kWalk>(a.cover), image_size = a.cover.image_size();
  for (int64_t before = blockIdx.y; before < a.N; before += gridDim.y) {
    const int64_t n = a.N - 1 - before;  // backwards: the maps whose norms were summed last are still in the cache
    const A norm = total_of<A>(a.norm_chunks + n * a.chunks, a.chunks, a.cover.channels);
    for (int64_t item = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x; item < items;
         item += int64_t{gridDim.x} * Access::kBlock) {
      walk_item<Access, kWalk, A>(
          a.cover, items - 1 - item, a.relevance + n * a.cover.pixels,
          [&](T relevance) { return applied_relevance(static_cast<A>(relevance), a.irrelevance) / norm; },
          [&](int64_t offset, const Pack<A, Access::kElements>& quotient) {
            const auto g = load<Access, Use::kOnce>(a.gradient + n * image_size + offset);
            typename Access::template Vector<T> result;
#pragma unroll
            for (int i = 0; i < Access::kElements; ++i) {
              result[i] = static_cast<T>(with_sign_of(quotient[i], g[i]));
            }
            store<Access, Use::kOnce>(a.direction + n * image_size + offset, result);
          });
    }
  }
}

template <int kBlock = 256, typename T, typename G>
void launch_directed_relevance(const DirectedRelevanceArguments<T, G>& arguments, cudaStream_t stream) {
  launch_map_norm<kBlock, T>({arguments.relevance, arguments.norm_chunks, arguments.N, arguments.cover.pixels,
                              arguments.chunks, arguments.irrelevance},
                             stream);
  const auto run = [&](auto access, auto walk) {
    using Access = decltype(access);
    launch(directed_relevance_kernel<Access, walk(), T, G>, ceil_div(items_of<Access, walk()>(arguments.cover), kBlock),
           arguments.N, 1, kBlock, stream, arguments);
  };
  choose_walk<T, kBlock>(arguments.cover, run, arguments.relevance, arguments.gradient, arguments.direction);
}

// The derivative of the map needs the norm and the sum along the direction of the whole image first. One kernel gathers
// both, and keeps what the other needs of the image: its sums over the channels.
template <typename T, typename G>
struct DirectedRelevanceBackwardArguments {
  using A = arithmetic_t<T>;
  const T* grad_direction;  // [N, cover.image_size()]
  const T* relevance;       // [N, cover.pixels]
  const G* gradient;        // as grad_direction
  T* grad_relevance;        // as relevance
  A* channel_sums;          // as relevance, written and read; may be the memory of grad_relevance
  double* norm_chunks;      // [N, chunks], written and read
  double* along_chunks;     // [N, chunks], written and read: sums of grad_direction * sign * relevance
  int64_t N, chunks;
  Cover cover;
  bool irrelevance;
};

// The gradient times the sign for pack `item` of the map, summed over the channels in their order.
template <typename Access, Walk kWalk, typename T, typename G>
__device__ __forceinline__ typename Access::template Vector<arithmetic_t<T>> sum_of_channels(
    const DirectedRelevanceBackwardArguments<T, G>& a, int64_t n, int64_t item) {
  static_assert(kWalk != Walk::kInterleavedRgb);
  using A = arithmetic_t<T>;
  const int64_t pixel_stride = kWalk == Walk::kPlanes ? 1 : a.cover.pixel_stride();
  const int64_t channel_stride = kWalk == Walk::kPlanes ? a.cover.pixels : a.cover.channel_stride();
  const int64_t first = n * a.cover.image_size() + item * Access::kElements * pixel_stride;
  typename Access::template Vector<A> sum{};
  visit_each(a.cover.channels, [&](int64_t c) {
    const auto grad = load<Access, Use::kOnce>(a.grad_direction + first + c * channel_stride);
    const auto g = load<Access, Use::kOnce>(a.gradient + first + c * channel_stride);
#pragma unroll
    for (int i = 0; i < Access::kElements; ++i) {
      sum[i] = sum[i] + with_sign_of(static_cast<A>(grad[i]), g[i]);
    }
  });
  return sum;
}

struct NormAndAlong {
  double norm, along;
};

template <typename Access, Walk kWalk, typename T, typename G>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64)
    channel_sums_kernel(DirectedRelevanceBackwardArguments<T, G> a) {
  using A = arithmetic_t<T>;
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
      NormAndAlong sums{0, 0};
      visit_chunk<Access::kBlock>(a.cover.pixels / Access::kElements, a.chunks, chunk, [&](int64_t item) {
        const int64_t pixel = n * a.cover.pixels + item * Access::kElements;
        const auto raw = load<Access>(a.relevance + pixel);
        const auto sum = sum_of_channels<Access, kWalk>(a, n, item);
#pragma unroll
        for (int i = 0; i < Access::kElements; ++i) {
          const double value = static_cast<double>(applied_relevance(static_cast<A>(raw[i]), a.irrelevance));
          sums.norm += fabs(value);
          sums.along += static_cast<double>(sum[i]) * value;
        }
        store<Access>(a.channel_sums + pixel, sum);
      });
      sums = block_reduce<Access::kBlock>(sums, [](const NormAndAlong& x, const NormAndAlong& y) {
        return NormAndAlong{x.norm + y.norm, x.along + y.along};
      });
      if (threadIdx.x == 0) {
        a.norm_chunks[n * a.chunks + chunk] = sums.norm;
        a.along_chunks[n * a.chunks + chunk] = sums.along;
      }
    }
  }
}

template <typename Access, typename T, typename G>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64)
    directed_relevance_backward_kernel(DirectedRelevanceBackwardArguments<T, G> a) {
  using A = arithmetic_t<T>;
  const int64_t items = a.cover.pixels / Access::kElements;
  const A repeats = static_cast<A>(a.cover.channels);
  for (int64_t before = blockIdx.y; before < a.N; before += gridDim.y) {
    const int64_t n = a.N - 1 - before;  // backwards, as above
    const A norm = total_of<A>(a.norm_chunks + n * a.chunks, a.chunks, a.cover.channels);
    const A along =
        static_cast<A>(total_of<double>(a.along_chunks + n * a.chunks, a.chunks, 1) / static_cast<double>(norm));
    for (int64_t item = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x; item < items;
         item += int64_t{gridDim.x} * Access::kBlock) {
      const int64_t pixel = n * a.cover.pixels + (items - 1 - item) * Access::kElements;
      const auto raw = load<Access, Use::kOnce>(a.relevance + pixel);
      const auto sum = load_own<Access>(a.channel_sums + pixel);
      typename Access::template Vector<T> result;
#pragma unroll
      for (int i = 0; i < Access::kElements; ++i) {
        const A value = applied_relevance(static_cast<A>(raw[i]), a.irrelevance);
        result[i] = static_cast<T>(relevance_gradient(sum[i], value, along, repeats, norm, a.irrelevance));
      }
      store<Access, Use::kOnce>(a.grad_relevance + pixel, result);
    }
  }
}

template <int kBlock = 256, typename T, typename G>
void launch_directed_relevance_backward(const DirectedRelevanceBackwardArguments<T, G>& arguments,
                                        cudaStream_t stream) {
  const Cover& cover = arguments.cover;
  const auto run = [&](auto access, auto walk) {
    using Access = decltype(access);
    launch(channel_sums_kernel<Access, walk(), T, G>, arguments.chunks, arguments.N, 1, kBlock, stream, arguments);
    launch(directed_relevance_backward_kernel<Access, T, G>, ceil_div(cover.pixels / Access::kElements, kBlock),
           arguments.N, 1, kBlock, stream, arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (!cover.interleaved && fits_vectors(Vector::kElements, cover.pixels, arguments.grad_direction, arguments.relevance,
                                         arguments.gradient, arguments.grad_relevance, arguments.channel_sums)) {
    run(Vector{}, std::integral_constant<Walk, Walk::kPlanes>{});
  } else {
    run(Access<T, kBlock, false>{}, std::integral_constant<Walk, Walk::kPixels>{});
  }
}

}  // namespace apem_fast
