// Sums and the like over an image by several blocks, in an order that only its shape decides: each block gathers one
// chunk, and whoever needs the total adds the chunks up in their order.
#pragma once

#include "platform.cuh"

namespace apem_fast {

// Of an image. Few, because every block of a second pass may add them all.
constexpr int64_t kMostChunks = 64, kLeastChunkPixels = 4096;

inline int64_t chunks_of(int64_t pixels) {
  return std::min(kMostChunks, std::max<int64_t>(1, ceil_div(pixels, kLeastChunkPixels)));
}

// Calls `visit(item)` for the items of the block's own chunk that are this thread's. A chunk is of whole rounds of the
// block, so that only the last one has threads without work; behind it chunks may be empty.
template <int kBlock, typename Visit>
__device__ __forceinline__ void visit_chunk(int64_t items, int64_t chunks, int64_t chunk, const Visit& visit) {
  const int64_t length = (items + chunks * kBlock - 1) / (chunks * kBlock) * kBlock, begin = chunk * length;
  const int64_t end = begin + length < items ? begin + length : items;
  for (int64_t item = begin + threadIdx.x; item < end; item += kBlock) {
    visit(item);
  }
}

}  // namespace apem_fast
