// Sums, extrema and the like over a warp or a block, in an order that only the shape decides. Every thread gets the
// result. Every thread of the warp or block must take part.
#pragma once

#include "platform.cuh"

namespace apem_fast {

// Moves a value of any plain type between the lanes of a warp, four bytes at a time.
template <typename V>
__device__ __forceinline__ V from_lane_xor(const V& value, int distance) {
  static_assert(std::is_trivially_copyable_v<V> && sizeof(V) % sizeof(unsigned) == 0);
  unsigned words[sizeof(V) / sizeof(unsigned)];
  memcpy(words, &value, sizeof(V));
#pragma unroll
  for (unsigned& word : words) {
    word = __shfl_xor_sync(kWholeWarp, word, distance);
  }
  V result;
  memcpy(&result, words, sizeof(V));
  return result;
}

// `combine` must be commutative, so that all lanes end with the same bits.
template <typename V, typename Combine>
__device__ __forceinline__ V warp_reduce(V value, const Combine& combine) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = combine(value, from_lane_xor(value, distance));
  }
  return value;
}

// Where each warp of a grid takes a row of its own, and then the row that is as many further as there are warps.
template <int kBlock>
__device__ __forceinline__ int64_t first_row() {
  return int64_t{blockIdx.x} * (kBlock / kWarp) + threadIdx.x / kWarp;
}

template <int kBlock>
__device__ __forceinline__ int64_t all_warps() {
  return int64_t{gridDim.x} * (kBlock / kWarp);
}

template <int kBlock, typename V, typename Combine>
__device__ __forceinline__ V block_reduce(V value, const Combine& combine) {
  static_assert(kBlock % kWarp == 0);
  value = warp_reduce(value, combine);
  if constexpr (kBlock > kWarp) {
    __shared__ V of_warp[kBlock / kWarp];
    __syncthreads();  // the results of an earlier call may still be being read
    if (threadIdx.x % kWarp == 0) {
      of_warp[threadIdx.x / kWarp] = value;
    }
    __syncthreads();
    value = of_warp[0];
#pragma unroll 4
    for (int warp = 1; warp < kBlock / kWarp; ++warp) {
      value = combine(value, of_warp[warp]);
    }
  }
  return value;
}

// The sum over the threads before this one.
template <int kBlock>
__device__ __forceinline__ unsigned block_exclusive_sum(unsigned value) {
  const int lane = threadIdx.x % kWarp, own_warp = threadIdx.x / kWarp;
  unsigned inclusive = value;
#pragma unroll
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const unsigned before = __shfl_up_sync(kWholeWarp, inclusive, distance);
    inclusive += lane >= distance ? before : 0;
  }
  __shared__ unsigned of_warp[kBlock / kWarp];
  __syncthreads();
  if (lane == kWarp - 1) {
    of_warp[own_warp] = inclusive;
  }
  __syncthreads();
  unsigned sum = inclusive - value;
  for (int warp = 0; warp < own_warp; ++warp) {
    sum += of_warp[warp];
  }
  return sum;
}

}  // namespace apem_fast
