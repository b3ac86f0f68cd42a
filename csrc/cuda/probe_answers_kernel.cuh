// probe_answers on CUDA: a warp for each row of logits. A batch's logits are small: what counts is that this is one
// launch in place of eight.
#pragma once

#include "access.cuh"
#include "reduction.cuh"

namespace apem_fast {

template <typename T>
struct ProbeAnswersArguments {
  const T* logits;        // [N, classes]
  const int64_t* labels;  // [N]
  const bool* above;      // as logits, or null
  double* out;            // [3, N]
  int64_t N, classes;
};

// What a margin is made of, and the greatest magnitude: NaN if any logit is.
template <typename A>
struct AnswerState {
  MarginState<A> margin;
  A magnitude;
};

template <typename A>
__device__ __forceinline__ A greater_magnitude(A a, A b) {
  return is_missing(a) || a > b ? a : b;  // also b where it is NaN
}

template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128)
    probe_answers_kernel(ProbeAnswersArguments<T> a) {
  using A = arithmetic_t<T>;
  for (int64_t n = first_row<Access::kBlock>(); n < a.N; n += all_warps<Access::kBlock>()) {
    const T* row = a.logits + n * a.classes;
    const bool* above = a.above == nullptr ? nullptr : a.above + n * a.classes;
    const int64_t label = a.labels[n];
    AnswerState<A> state{no_logits<A>(), A(0)};
#pragma unroll 2
    for (int64_t first = threadIdx.x % kWarp * Access::kElements; first < a.classes;
         first += kWarp * Access::kElements) {
      const auto logits = load<Access>(row + first);
#pragma unroll
      for (int i = 0; i < Access::kElements; ++i) {
        const A logit = static_cast<A>(logits[i]);
        const bool left_out = above != nullptr && above[first + i];
        state.margin =
            with_later_logit(state.margin, left_out ? -std::numeric_limits<A>::infinity() : logit, first + i, label);
        state.magnitude = greater_magnitude(state.magnitude, logit < 0 ? -logit : logit);
      }
    }
    const MarginState<A> margin = with_indices(
        warp_reduce(state.margin, [](const MarginState<A>& x, const MarginState<A>& y) { return merged(x, y); }),
        label);
    const A magnitude = warp_reduce(state.magnitude, [](A x, A y) { return greater_magnitude(x, y); });
    if (threadIdx.x % kWarp == 0) {
      // Reading the labels on the host would wait for the device, so one that is out of range shows as NaN.
      const bool exists = 0 <= label && label < a.classes;
      const bool left_out = exists && above != nullptr && above[label];
      const A own = !exists    ? std::numeric_limits<A>::quiet_NaN()
                    : left_out ? -std::numeric_limits<A>::infinity()
                               : static_cast<A>(row[label]);
      const A value = exists ? margin_of(margin, own) : own;
      a.out[n] = static_cast<double>(static_cast<T>(value));
      a.out[a.N + n] = margin.any.index != label;
      a.out[2 * a.N + n] = static_cast<double>(magnitude);
    }
  }
}

template <int kBlock = 128, typename T>
void launch_probe_answers(const ProbeAnswersArguments<T>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access) {
    launch(probe_answers_kernel<decltype(access), T>, ceil_div(arguments.N, kBlock / kWarp), 1, 1, kBlock, stream,
           arguments);
  };
  using Vector = Access<T, kBlock, true>;
  if (fits_vectors(Vector::kElements, arguments.classes, arguments.logits)) {
    run(Vector{});
  } else {
    run(Access<T, kBlock, false>{});
  }
}

}  // namespace apem_fast
