// label_margin and its backward on CUDA: a warp for each row of logits, which it reads once, with no barrier between
// the rows of a block.
//
// Forward, the best class beside the label is the greatest logit or, if that is the label's, the second greatest. Both
// are found without looking at the label, and without their indices but for the greatest's. A row with a NaN is done
// again, with the rules for it.
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

// The two greatest logits of a row, or of a part of it, and where the first of the greatest is; -infinity is nowhere.
template <typename A>
struct TwoGreatest {
  A greatest, second;
  int64_t index;
  bool missing;  // whether there is a NaN; then the rest means nothing
};

template <typename A>
__device__ __forceinline__ TwoGreatest<A> none_greatest() {
  return {-std::numeric_limits<A>::infinity(), -std::numeric_limits<A>::infinity(), nothing_seen<A>().index, false};
}

template <typename A>
__device__ __forceinline__ A greater(A a, A b) {
  return std::is_same_v<A, float> ? fmaxf(a, b) : fmax(a, b);  // one instruction
}

template <typename A>
__device__ __forceinline__ A lesser(A a, A b) {
  return std::is_same_v<A, float> ? fminf(a, b) : fmin(a, b);
}

// With logits from `index` on, behind all those of the state.
template <typename Access, typename T, typename A = arithmetic_t<T>>
__device__ __forceinline__ void add_pack(TwoGreatest<A>& state, const Pack<T, Access::kElements>& logits,
                                         int64_t index) {
  int at = -1;
#pragma unroll
  for (int i = 0; i < Access::kElements; ++i) {
    const A logit = static_cast<A>(logits[i]);
    state.missing = state.missing || is_missing(logit);
    state.second = greater(state.second, lesser(state.greatest, logit));
    at = logit > state.greatest ? i : at;
    state.greatest = greater(state.greatest, logit);
  }
  state.index = at < 0 ? state.index : index + at;
}

// What all lanes of a warp together have.
template <typename A>
__device__ __forceinline__ TwoGreatest<A> of_warp(const TwoGreatest<A>& of_lane) {
  struct Values {
    A greatest, second;
  };
  const Values values = warp_reduce(Values{of_lane.greatest, of_lane.second}, [](const Values& a, const Values& b) {
    return Values{greater(a.greatest, b.greatest),
                  greater(lesser(a.greatest, b.greatest), greater(a.second, b.second))};
  });
  const int64_t own = of_lane.greatest == values.greatest ? of_lane.index : nothing_seen<A>().index;
  const int64_t index = warp_reduce(own, [](int64_t a, int64_t b) { return a < b ? a : b; });
  const bool missing = __any_sync(kWholeWarp, of_lane.missing) != 0;
  return {values.greatest, values.second, index, missing};
}

// Packs of a row that a lane has in registers: a row of 1,000 logits in float32, or in half precision, whose values
// need more registers once they are converted.
template <typename Access>
constexpr int kPacksOfRow = Access::kElements == 8 ? 4 : 8;

// While a warp works on its packs it asks for the next ones, of the same row or its next: there are always some under
// way, also while the lanes are joined.
template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128) label_margin_kernel(LabelMarginArguments<T> a) {
  using A = arithmetic_t<T>;
  constexpr int kStep = kWarp * Access::kElements, kPacks = kPacksOfRow<Access>;
  const int64_t lane = threadIdx.x % kWarp * Access::kElements;
  int64_t n = first_row<Access::kBlock>(), begin = lane;
  typename Access::template Vector<T> packs[kPacks];
  const auto load_pack = [&](int j, int64_t row, int64_t from) {
    if (row < a.N && from + j * kStep < a.classes) {
      packs[j] = load<Access>(a.logits + row * a.classes + from + j * kStep);
    }
  };
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    load_pack(j, n, begin);
  }
  TwoGreatest<A> state = none_greatest<A>();
  while (n < a.N) {
    const bool last = begin - lane + kPacks * kStep >= a.classes;
    const int64_t next_row = last ? n + all_warps<Access::kBlock>() : n;
    const int64_t next_begin = last ? lane : begin + kPacks * kStep;
    // Reading the labels on the host would wait for the device, so one that is out of range shows as NaN.
    const int64_t label = a.labels[n];
    const bool exists = 0 <= label && label < a.classes;
    const A label_logit =
        exists ? static_cast<A>(a.logits[n * a.classes + label]) : std::numeric_limits<A>::quiet_NaN();
#pragma unroll
    for (int j = 0; j < kPacks; ++j) {
      if (begin + j * kStep < a.classes) {
        add_pack<Access, T>(state, packs[j], begin + j * kStep);
      }
      load_pack(j, next_row, next_begin);
    }
    if (last) {
      const TwoGreatest<A> of_row = of_warp(state);
      if (of_row.missing) {  // of the whole warp
        const MarginState<A> with_missing = state_of_row<Access>(a.logits + n * a.classes, a.classes, label);
        if (lane == 0) {
          a.margin[n] = static_cast<T>(margin_of(with_missing, label_logit));
          a.predicted[n] = with_missing.any.index;
        }
      } else if (lane == 0) {
        const int64_t predicted = of_row.index == nothing_seen<A>().index ? 0 : of_row.index;
        a.margin[n] = static_cast<T>(label_logit - (predicted == label ? of_row.second : of_row.greatest));
        a.predicted[n] = predicted;
      }
      state = none_greatest<A>();
    }
    n = next_row;
    begin = next_begin;
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

// A warp takes several rows, but no more than leave enough blocks for every multiprocessor of a large device.
constexpr int64_t kMostRowsOfWarp = 8, kEnoughBlocksOfRows = 4096;

template <int kBlock = 128, typename T>
void launch_label_margin(const LabelMarginArguments<T>& arguments, cudaStream_t stream) {
  const int64_t blocks = ceil_div(arguments.N, kBlock / kWarp);
  const int64_t wanted = std::max(ceil_div(blocks, kMostRowsOfWarp), std::min(blocks, kEnoughBlocksOfRows));
  const auto run = [&](auto access) {
    launch(label_margin_kernel<decltype(access), T>, wanted, 1, 1, kBlock, stream, arguments);
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
