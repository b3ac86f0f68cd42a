// saliency_map on CUDA: the distances of an image's pixels and, chunk by chunk, their range in one kernel; the
// rescaling, for which the range must be whole, in another. Both for so many images at a time that their distances
// stay in the second-level cache.
#pragma once

#include "chunks.cuh"
#include "pixels.cuh"
#include "reduction.cuh"

namespace apem_fast {

template <typename T>
struct SaliencyMapArguments {
  const T* original;  // [N, cover.image_size()], as perturbed
  const T* perturbed;
  arithmetic_t<T>* distance;               // [at once, cover.pixels], written and read
  Extent<arithmetic_t<T>>* chunk_extents;  // [at once, chunks], written and read
  T* out;                                  // [N, cover.pixels]
  int64_t N, chunks;
  Cover cover;
};

template <typename Access, Walk kWalk, typename T>
__global__ void __launch_bounds__(Access::kBlock, kTogether<kWalk> > 1 ? Access::kBlocksOf128 : Access::kBlocksOf64)
    pixel_distance_kernel(SaliencyMapArguments<T> a) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements;
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    const int64_t image = n * a.cover.image_size();
    for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
      Extent<A> extent = no_values<A>();
      visit_chunk<Access::kBlock>(a.cover.pixels / kElements, a.chunks, chunk, [&](int64_t item) {
        const int64_t pixel = item * kElements;
        Pack<A, kElements> distance{};
        visit_each(groups_of<kWalk>(a.cover), [&](int64_t group) {
          const int64_t at = image + offset_of<kWalk>(a.cover, pixel, group);
          const auto difference = load_differences<Access, kWalk, A>(a.original + at, a.perturbed + at);
#pragma unroll
          for (int k = 0; k < difference.kCount; ++k) {
            distance[k / kTogether<kWalk>] += difference[k] * difference[k];
          }
        });
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          distance[i] = std::sqrt(distance[i]);
          extent = with_value(extent, distance[i]);
        }
        store<Access>(a.distance + n * a.cover.pixels + pixel, distance);
      });
      extent =
          block_reduce<Access::kBlock>(extent, [](const Extent<A>& x, const Extent<A>& y) { return merged(x, y); });
      if (threadIdx.x == 0) {
        a.chunk_extents[n * a.chunks + chunk] = extent;
      }
    }
  }
}

template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64) saliency_map_kernel(SaliencyMapArguments<T> a) {
  using A = arithmetic_t<T>;
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    Extent<A> extent = no_values<A>();
    for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
      extent = merged(extent, a.chunk_extents[n * a.chunks + chunk]);
    }
    for (int64_t pixel = (int64_t{blockIdx.x} * Access::kBlock + threadIdx.x) * Access::kElements;
         pixel < a.cover.pixels; pixel += int64_t{gridDim.x} * Access::kBlock * Access::kElements) {
      const int64_t at = n * a.cover.pixels + pixel;
      const auto distance = load<Access>(a.distance + at);
      typename Access::template Vector<T> result;
#pragma unroll
      for (int i = 0; i < Access::kElements; ++i) {
        result[i] = static_cast<T>(rescaled(distance[i], extent));
      }
      store<Access>(a.out + at, result);
    }
  }
}

// Of the second kernel: joining the chunks' ranges costs a thread more instructions than a pack.
constexpr int kPacksPerThread = 4;

// How many images have their distances in the cache at once.
template <typename T>
int64_t images_at_once(const Cover& cover, int64_t images) {
  const int64_t fit = Limits::cache_bytes() / (cover.pixels * static_cast<int64_t>(sizeof(arithmetic_t<T>)));
  return std::clamp<int64_t>(fit, 1, std::max<int64_t>(images, 1));
}

template <int kBlock = 256, typename T>
void launch_saliency_map(const SaliencyMapArguments<T>& arguments, cudaStream_t stream) {
  const int64_t at_once = images_at_once<T>(arguments.cover, arguments.N);
  const auto run = [&](auto access, auto walk) {
    using Access = decltype(access);
    for (int64_t first = 0; first < arguments.N; first += at_once) {
      SaliencyMapArguments<T> part = arguments;
      part.original += first * part.cover.image_size();
      part.perturbed += first * part.cover.image_size();
      part.out += first * part.cover.pixels;
      part.N = std::min(at_once, arguments.N - first);
      launch(pixel_distance_kernel<Access, walk(), T>, part.chunks, part.N, 1, kBlock, stream, part);
      const int64_t blocks = ceil_div(part.cover.pixels / Access::kElements, kBlock * kPacksPerThread);
      launch(saliency_map_kernel<Access, T>, blocks, part.N, 1, kBlock, stream, part);
    }
  };
  choose_pixels<T, kBlock>(arguments.cover, arguments.cover.pixels, run, arguments.original, arguments.perturbed,
                           arguments.distance, arguments.out);
}

}  // namespace apem_fast
