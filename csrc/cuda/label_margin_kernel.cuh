// label_margin and its backward on CUDA: a warp for each row of logits, which it reads once, with
// no barrier between the rows of a block.
#pragma once

#include "access.cuh"
#include "reduction.cuh"

namespace apem_fast {

template <typename T>
struct LabelMarginArguments {
  const T* logits;        // [N, classes]
  const int64_t* labels;  // [N], as the two below
  T* margin;
  int64_t* predicted;
  int64_t N, classes;
};

constexpr int kLoadsAtOnce = 4;

// What the warp's lanes together see of a row.
template <typename Access, typename T>
__device__ __forceinline__ MarginState<arithmetic_t<T>> state_of_row(const T* row, int64_t classes, int64_t label) {
  using A = arithmetic_t<T>;
  constexpr int kStep = kWarp * Access::kElements;
  MarginState<A> state = no_logits<A>();
  for (int64_t first = threadIdx.x % kWarp * Access::kElements; first < classes; first += kLoadsAtOnce * kStep) {
    typename Access::template Vector<T> logits[kLoadsAtOnce];
#pragma unroll
    for (int j = 0; j < kLoadsAtOnce; ++j) {
      if (first + j * kStep < classes) {
        logits[j] = load<Access>(row + first + j * kStep);
      }
    }
#pragma unroll
    for (int j = 0; j < kLoadsAtOnce; ++j) {
      if (first + j * kStep < classes) {
#pragma unroll
        for (int i = 0; i < Access::kElements; ++i) {
          state = with_later_logit(state, static_cast<A>(logits[j][i]), first + j * kStep + i, label);
        }
      }
    }
  }
  state = warp_reduce(state, [](const MarginState<A>& a, const MarginState<A>& b) { return merged(a, b); });
  return with_indices(state, label);
}

template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128) label_margin_kernel(LabelMarginArguments<T> a) {
  using A = arithmetic_t<T>;
  for (int64_t n = first_row<Access::kBlock>(); n < a.N; n += all_warps<Access::kBlock>()) {
    const T* row = a.logits + n * a.classes;
    const int64_t label = a.labels[n];
    const MarginState<A> state = state_of_row<Access>(row, a.classes, label);
    if (threadIdx.x % kWarp == 0) {
      // Reading the labels on the host would wait for the device, so one that is out of range shows as NaN.
      const bool exists = 0 <= label && label < a.classes;
      const A margin = exists ? margin_of(state, static_cast<A>(row[label])) : std::numeric_limits<A>::quiet_NaN();
      a.margin[n] = static_cast<T>(margin);
      a.predicted[n] = state.any.index;
    }
  }
}

template <typename T>
struct LabelMarginBackwardArguments {
  const T* grad_margin;   // [N]
  const T* logits;        // [N, classes]
  const int64_t* labels;  // [N]
  T* grad_logits;         // [N, classes]
  int64_t N, classes;
};

template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128)
    label_margin_backward_kernel(LabelMarginBackwardArguments<T> a) {
  using A = arithmetic_t<T>;
  for (int64_t n = first_row<Access::kBlock>(); n < a.N; n += all_warps<Access::kBlock>()) {
    const int64_t label = a.labels[n];
    const int64_t other = state_of_row<Access>(a.logits + n * a.classes, a.classes, label).other.index;
    const A grad = static_cast<A>(a.grad_margin[n]);
    const bool exists = 0 <= label && label < a.classes;
    const A elsewhere = exists ? A(0) : std::numeric_limits<A>::quiet_NaN();
    for (int64_t first = threadIdx.x % kWarp * Access::kElements; first < a.classes;
         first += kWarp * Access::kElements) {
      typename Access::template Vector<T> result;
#pragma unroll
      for (int i = 0; i < Access::kElements; ++i) {
        const int64_t index = first + i;
        result[i] = static_cast<T>(index == label ? grad : exists && index == other ? -grad : elsewhere);
      }
      store<Access>(a.grad_logits + n * a.classes + first, result);
    }
  }
}

template <int kBlock = 128, typename T>
void launch_label_margin(const LabelMarginArguments<T>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    launch(label_margin_kernel<decltype(access), T>, ceil_div(arguments.N, kBlock / kWarp), 1, 1, kBlock, stream,
           arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (fits_vectors(Vector::kElements, arguments.classes, arguments.logits)) {
    run(Vector{});
  } else {
    run(Access<T, kBlock, false>{});
  }
}

template <int kBlock = 128, typename T>
void launch_label_margin_backward(const LabelMarginBackwardArguments<T>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    launch(label_margin_backward_kernel<decltype(access), T>, ceil_div(arguments.N, kBlock / kWarp), 1, 1, kBlock,
           stream, arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (fits_vectors(Vector::kElements, arguments.classes, arguments.logits, arguments.grad_logits)) {
    run(Vector{});
  } else {
    run(Access<T, kBlock, false>{});
  }
}

}  // namespace apem_fast
