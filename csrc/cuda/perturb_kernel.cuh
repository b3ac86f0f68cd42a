// perturb on CUDA: an element of an image and of its direction is read once and written for kStepsPerRead epsilons; its
// backward reads the gradients of all epsilons and sums them in their order.
#pragma once

#include "access.cuh"

namespace apem_fast {

// Enough that reading hardly counts, few enough that one image with many epsilons still fills the device.
constexpr int kStepsPerRead = 16;

template <typename T, typename E>
struct PerturbArguments {
  const T* images;  // [N, size], as direction
  const T* direction;
  const E* epsilon;  // row n at n * epsilon_stride, of K values; a stride of 0 shares one row
  T* out;            // [N, K, size]
  int64_t N, K, size, epsilon_stride;
  double lower, upper;
};

template <typename Access, typename T, typename E>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64) perturb_kernel(PerturbArguments<T, E> a) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements;
  const A lower = static_cast<A>(a.lower), upper = static_cast<A>(a.upper);
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    const E* epsilon = a.epsilon + n * a.epsilon_stride;
    for (int64_t first = int64_t{blockIdx.z} * kStepsPerRead; first < a.K;
         first += int64_t{gridDim.z} * kStepsPerRead) {
      const int64_t last = first + kStepsPerRead < a.K ? first + kStepsPerRead : a.K;
      for (int64_t i = (int64_t{blockIdx.x} * Access::kBlock + threadIdx.x) * kElements; i < a.size;
           i += int64_t{gridDim.x} * Access::kBlock * kElements) {
        const auto x = load<Access>(a.images + n * a.size + i);
        const auto d = load<Access>(a.direction + n * a.size + i);
        for (int64_t k = first; k < last; ++k) {
          const A step = static_cast<A>(static_cast<double>(epsilon[k]));
          typename Access::template Vector<T> result;
#pragma unroll
          for (int e = 0; e < kElements; ++e) {
            result[e] =
                static_cast<T>(clamped(perturbed(static_cast<A>(x[e]), step, static_cast<A>(d[e])), lower, upper));
          }
          store<Access>(a.out + (n * a.K + k) * a.size + i, result);
        }
      }
    }
  }
}

template <int kBlock = 256, typename T, typename E>
void launch_perturb(const PerturbArguments<T, E>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    using Access = decltype(access);
    launch(perturb_kernel<Access, T, E>, ceil_div(arguments.size, kBlock * Access::kElements), arguments.N,
           ceil_div(arguments.K, kStepsPerRead), kBlock, stream, arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (fits_vectors(Vector::kElements, arguments.size, arguments.images, arguments.direction, arguments.out)) {
    run(Vector{});
  } else {
    run(Access<T, kBlock, false>{});
  }
}

template <typename T, typename E>
struct PerturbBackwardArguments {
  const T* grad_perturbed;  // [N, K, size]
  const T* images;          // [N, size], as the three below
  const T* direction;
  T* grad_images;
  T* grad_direction;
  const E* epsilon;  // as in PerturbArguments
  int64_t N, K, size, epsilon_stride;
  double lower, upper;
};

template <typename Access, typename T, typename E>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128)
    perturb_backward_kernel(PerturbBackwardArguments<T, E> a) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements;
  const A lower = static_cast<A>(a.lower), upper = static_cast<A>(a.upper);
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    const E* epsilon = a.epsilon + n * a.epsilon_stride;
    for (int64_t i = (int64_t{blockIdx.x} * Access::kBlock + threadIdx.x) * kElements; i < a.size;
         i += int64_t{gridDim.x} * Access::kBlock * kElements) {
      const auto x = load<Access>(a.images + n * a.size + i);
      const auto d = load<Access>(a.direction + n * a.size + i);
      Pack<A, kElements> of_images{}, of_direction{};
#pragma unroll 4
      for (int64_t k = 0; k < a.K; ++k) {
        const A step = static_cast<A>(static_cast<double>(epsilon[k]));
        const auto g = load<Access>(a.grad_perturbed + (n * a.K + k) * a.size + i);
#pragma unroll
        for (int e = 0; e < kElements; ++e) {
          const A value = perturbed(static_cast<A>(x[e]), step, static_cast<A>(d[e]));
          const A passed = passed_gradient(static_cast<A>(g[e]), value, lower, upper);
          of_images[e] = of_images[e] + passed;
          of_direction[e] = of_direction[e] + step * passed;
        }
      }
      typename Access::template Vector<T> grad_images, grad_direction;
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        grad_images[e] = static_cast<T>(of_images[e]);
        grad_direction[e] = static_cast<T>(of_direction[e]);
      }
      store<Access>(a.grad_images + n * a.size + i, grad_images);
      store<Access>(a.grad_direction + n * a.size + i, grad_direction);
    }
  }
}

template <int kBlock = 256, typename T, typename E>
void launch_perturb_backward(const PerturbBackwardArguments<T, E>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    using Access = decltype(access);
    launch(perturb_backward_kernel<Access, T, E>, ceil_div(arguments.size, kBlock * Access::kElements), arguments.N, 1,
           kBlock, stream, arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (fits_vectors(Vector::kElements, arguments.size, arguments.grad_perturbed, arguments.images, arguments.direction,
                   arguments.grad_images, arguments.grad_direction)) {
    run(Vector{});
  } else {
    run(Access<T, kBlock, false>{});
  }
}

}  // namespace apem_fast
