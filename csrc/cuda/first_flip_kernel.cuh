// first_flip on CUDA: a warp for each ray.
#pragma once

#include "access.cuh"
#include "reduction.cuh"

namespace apem_fast {

template <typename E>
struct FirstFlipArguments {
  const int64_t* predicted;  // [R, K]
  const int64_t* labels;     // [R]
  const E* epsilon;          // row r at r * epsilon_stride, of K values; a stride of 0 shares one row
  E* out;                    // [R]
  int64_t R, K, epsilon_stride;
};

template <typename Access, typename E>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64) first_flip_kernel(FirstFlipArguments<E> a) {
  for (int64_t r = first_row<Access::kBlock>(); r < a.R; r += all_warps<Access::kBlock>()) {
    const int64_t label = a.labels[r];
    E first = std::numeric_limits<E>::infinity();
#pragma unroll 4
    for (int64_t k = threadIdx.x % kWarp * Access::kElements; k < a.K; k += kWarp * Access::kElements) {
      const auto predicted = load<Access>(a.predicted + r * a.K + k);
      const auto epsilon = load<Access>(a.epsilon + r * a.epsilon_stride + k);
#pragma unroll
      for (int i = 0; i < Access::kElements; ++i) {
        first = earlier_flip(first, flip_epsilon(predicted[i], label, epsilon[i]));
      }
    }
    first = warp_reduce(first, [](E x, E y) { return earlier_flip(x, y); });
    if (threadIdx.x % kWarp == 0) {
      a.out[r] = first;
    }
  }
}

template <int kBlock = 128, typename E>
void launch_first_flip(const FirstFlipArguments<E>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    launch(first_flip_kernel<decltype(access), E>, ceil_div(arguments.R, kBlock / kWarp), 1, 1, kBlock, stream,
           arguments);
  };
  using Vector = Access<E, kBlock, true>;
  if (fits_vectors(Vector::kElements, arguments.K, arguments.predicted, arguments.epsilon)) {
    run(Vector{});
  } else {
    run(Access<E, kBlock, false>{});
  }
}

}  // namespace apem_fast
