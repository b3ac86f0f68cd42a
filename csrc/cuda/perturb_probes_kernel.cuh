// perturb_probes on CUDA: a block works on one probe at a time, so what it must know of the probe is read once. Nothing
// but the outputs is written. Probes of one image mostly follow one another: a block takes several in a row, and finds
// its part of the image, the map and the gradient in its multiprocessor's own cache from the second on.
#pragma once

#include "cover.cuh"

namespace apem_fast {

template <typename T, typename G, typename O>
struct PerturbProbesArguments {
  const T* images;     // [image_count, cover.image_size()]
  const T* relevance;  // [map_count, cover.pixels]
  const G* gradient;   // as images
  const double* norm;  // [probes], as the five below
  const int64_t* probe_image;
  const int64_t* probe_map;
  const bool* probe_irrelevance;
  const double* probe_epsilon;
  const double* probe_level;
  O* out;  // [probes, cover.image_size()]
  int64_t probes, image_count, map_count;
  Cover cover;
  double lower, upper;
};

// The block's part of probe m's input.
template <typename Access, Walk kWalk, bool kBounded, typename T, typename G, typename O>
__device__ __forceinline__ void write_probe(const PerturbProbesArguments<T, G, O>& a, int64_t m) {
  using A = arithmetic_t<T>;
  const int64_t items = items_of<Access, kWalk>(a.cover), image_size = a.cover.image_size();
  const int64_t row = a.probe_image[m], map_row = a.probe_map[m];
  const bool irrelevance = a.probe_irrelevance[m];
  const A norm = static_cast<A>(a.norm[m]), level = static_cast<A>(a.probe_level[m]);
  const A epsilon = static_cast<A>(a.probe_epsilon[m]);
  const A lower = static_cast<A>(a.lower), upper = static_cast<A>(a.upper);
  O* out = a.out + m * image_size;
  const int64_t first = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x, step = int64_t{gridDim.x} * Access::kBlock;
  // Reading the indices on the host would wait for the device, so what is out of range shows as NaN.
  if (!(0 <= row && row < a.image_count && 0 <= map_row && map_row < a.map_count)) {
    for (int64_t i = first; i < image_size; i += step) {
      out[i] = static_cast<O>(std::numeric_limits<float>::quiet_NaN());
    }
    return;
  }
  const T* image = a.images + row * image_size;
  const G* gradient = a.gradient + row * image_size;
  for (int64_t item = first; item < items; item += step) {
    walk_item<Access, kWalk, A>(
        a.cover, item, a.relevance + map_row * a.cover.pixels,
        [&](T relevance) { return probe_relevance(static_cast<A>(relevance), level, irrelevance) / norm; },
        [&](int64_t offset, const Pack<A, Access::kElements>& quotient) {
          const auto x = load<Access>(image + offset);
          const auto g = load<Access>(gradient + offset);
          typename Access::template Vector<O> result;
#pragma unroll
          for (int i = 0; i < Access::kElements; ++i) {
            const A value = perturbed(static_cast<A>(x[i]), epsilon, with_sign_of(quotient[i], g[i]));
            result[i] = static_cast<O>(kBounded ? clamped(value, lower, upper) : value);
          }
          store<Access>(out + offset, result);
        });
  }
}

template <typename Access, Walk kWalk, bool kBounded, typename T, typename G, typename O>
__global__ void __launch_bounds__(Access::kBlock, sizeof(O) < sizeof(T) ? Access::kBlocksOf128 : Access::kBlocksOf64)
    perturb_probes_kernel(PerturbProbesArguments<T, G, O> a) {
  const int64_t run = (a.probes + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * run;
  const int64_t end = begin + run < a.probes ? begin + run : a.probes;
  for (int64_t m = begin; m < end; ++m) {
    write_probe<Access, kWalk, kBounded>(a, m);
  }
}

// A block's probes: as many as the image's part in the cache may serve, but so few that there are enough blocks for
// every multiprocessor of a large device, several times over.
constexpr int64_t kMostProbesPerBlock = 8, kEnoughBlocks = 2048;

template <int kBlock = 256, typename T, typename G, typename O>
void launch_perturb_probes(const PerturbProbesArguments<T, G, O>& arguments, cudaStream_t stream) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  const bool bounded = arguments.lower != -kInfinity || arguments.upper != kInfinity;
  const auto run = [&](auto access, auto walk) {
    using Access = decltype(access);
    const int64_t tiles = ceil_div(items_of<Access, walk()>(arguments.cover), kBlock);
    const int64_t runs = std::max(ceil_div(arguments.probes, kMostProbesPerBlock), ceil_div(kEnoughBlocks, tiles));
    // Doubles leave no registers to gain from it.
    constexpr bool kAlways = std::is_same_v<T, double>;
    const auto kernel = bounded ? perturb_probes_kernel<Access, walk(), true, T, G, O>
                                : perturb_probes_kernel<Access, walk(), kAlways, T, G, O>;
    launch(kernel, tiles, std::min(runs, arguments.probes), 1, kBlock, stream, arguments);
  };
  choose_walk<narrower_t<T, O>, kBlock>(arguments.cover, run, arguments.relevance, arguments.images, arguments.gradient,
                                        arguments.out);
}

}  // namespace apem_fast
