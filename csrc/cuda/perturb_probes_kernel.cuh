// perturb_probes on CUDA: a block works on one probe at a time, so what it must know of the probe is read once. Nothing
// but the outputs is written.
#pragma once

#include "cover.cuh"

namespace apem_fast {

template <typename T, typename G, typename O>
struct PerturbProbesArguments {
  const T* images;                 // [image_count, cover.image_size()]
  const T* relevance;              // [map_count, cover.pixels]
  const G* gradient;               // as images
  const double* norm;              // [probes], as the five below
  const int64_t* probe_image;
  const int64_t* probe_map;
  const bool* probe_irrelevance;
  const double* probe_epsilon;
  const double* probe_level;
  O* out;                          // [probes, cover.image_size()]
  int64_t probes, image_count, map_count;
  Cover cover;
  double lower, upper;
};

template <typename Access, Walk kWalk, typename T, typename G, typename O>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64)
    perturb_probes_kernel(PerturbProbesArguments<T, G, O> a) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements;
  const int64_t items = items_of<Access, kWalk>(a.cover), image_size = a.cover.image_size();
  const A lower = static_cast<A>(a.lower), upper = static_cast<A>(a.upper);
  for (int64_t m = blockIdx.y; m < a.probes; m += gridDim.y) {
    const int64_t row = a.probe_image[m], map_row = a.probe_map[m];
    // Reading the indices on the host would wait for the device, so what is out of range shows as NaN.
    const bool exists = 0 <= row && row < a.image_count && 0 <= map_row && map_row < a.map_count;
    const T* image = a.images + (exists ? row * image_size : 0);
    const G* gradient = a.gradient + (exists ? row * image_size : 0);
    const T* map = a.relevance + (exists ? map_row * a.cover.pixels : 0);
    O* out = a.out + m * image_size;
    const bool irrelevance = a.probe_irrelevance[m];
    const A norm = static_cast<A>(a.norm[m]), level = static_cast<A>(a.probe_level[m]);
    const A epsilon = static_cast<A>(a.probe_epsilon[m]);
    if (!exists) {
      for (int64_t i = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x; i < image_size;
           i += int64_t{gridDim.x} * Access::kBlock) {
        out[i] = static_cast<O>(std::numeric_limits<float>::quiet_NaN());
      }
      continue;
    }
    for (int64_t item = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x; item < items;
         item += int64_t{gridDim.x} * Access::kBlock) {
      walk_item<Access, kWalk, A>(
          a.cover, item, map,
          [&](T relevance) { return probe_relevance(static_cast<A>(relevance), level, irrelevance) / norm; },
          [&](int64_t offset, const Pack<A, kElements>& quotient) {
            const auto x = load<Access>(image + offset);
            const auto g = load<Access>(gradient + offset);
            typename Access::template Vector<O> result;
#pragma unroll
            for (int i = 0; i < kElements; ++i) {
              const A direction = quotient[i] * sign_of<A>(g[i]);
              result[i] = static_cast<O>(clamped(perturbed(static_cast<A>(x[i]), epsilon, direction), lower, upper));
            }
            store<Access>(out + offset, result);
          });
    }
  }
}

template <int kBlock = 256, typename T, typename G, typename O>
void launch_perturb_probes(const PerturbProbesArguments<T, G, O>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access, auto walk) {
    using Access = decltype(access);
    const int64_t items = items_of<Access, walk()>(arguments.cover);
    launch(perturb_probes_kernel<Access, walk(), T, G, O>, ceil_div(items, kBlock), arguments.probes, 1, kBlock, stream,
           arguments);
  };
  choose_walk<narrower_t<T, O>, kBlock>(arguments.cover, run, arguments.relevance, arguments.images,
                                        arguments.gradient, arguments.out);
}

}  // namespace apem_fast
