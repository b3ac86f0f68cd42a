// zero_levels on CUDA: a block for each map and threshold writes the zeroed map and sums what it writes.
#pragma once

#include "access.cuh"
#include "reduction.cuh"

namespace apem_fast {

template <typename T, typename E>
struct ZeroLevelsArguments {
  const T* relevance;  // [N, size]
  const E* threshold;  // map n's at n * threshold_stride, of L values; a stride of 0 shares one row
  T* out;              // [N, L, size]
  double* norms;       // [N, L, 2]
  int64_t N, L, size, threshold_stride;
};

template <typename Access, typename T, typename E>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64) zero_levels_kernel(ZeroLevelsArguments<T, E> a) {
  using A = arithmetic_t<T>;
  const auto add = [](double x, double y) { return x + y; };
  for (int64_t row = blockIdx.x; row < a.N * a.L; row += gridDim.x) {
    const int64_t map = row / a.L;
    const A level = static_cast<A>(a.threshold[map * a.threshold_stride + row % a.L]);
    double relevance = 0, irrelevance = 0;
    for (int64_t i = int64_t{threadIdx.x} * Access::kElements; i < a.size; i += Access::kBlock * Access::kElements) {
      const auto values = load<Access>(a.relevance + map * a.size + i);
      typename Access::template Vector<T> zeroed;
#pragma unroll
      for (int e = 0; e < Access::kElements; ++e) {
        const A value = probe_relevance(static_cast<A>(values[e]), level, false);
        const A inverse = applied_relevance(value, true);
        zeroed[e] = static_cast<T>(value);
        relevance += static_cast<double>(value < 0 ? -value : value);
        irrelevance += static_cast<double>(inverse < 0 ? -inverse : inverse);
      }
      store<Access>(a.out + row * a.size + i, zeroed);
    }
    relevance = block_reduce<Access::kBlock>(relevance, add);
    irrelevance = block_reduce<Access::kBlock>(irrelevance, add);
    if (threadIdx.x == 0) {
      a.norms[2 * row] = relevance;
      a.norms[2 * row + 1] = irrelevance;
    }
  }
}

template <int kBlock = 256, typename T, typename E>
void launch_zero_levels(const ZeroLevelsArguments<T, E>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    launch(zero_levels_kernel<decltype(access), T, E>, arguments.N * arguments.L, 1, 1, kBlock, stream, arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (fits_vectors(Vector::kElements, arguments.size, arguments.relevance, arguments.out)) {
    run(Vector{});
  } else {
    run(Access<T, kBlock, false>{});
  }
}

}  // namespace apem_fast
