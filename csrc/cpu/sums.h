// Sums in float64 that depend neither on the number of threads nor on the width of the vectors: chunks of a fixed size,
// lanes of a fixed number, added up in order.
#pragma once

#include "tiles.h"

namespace apem_fast {

constexpr int64_t kSumChunk = 8192;

inline double sum_of_lanes(const double* lane) {
  double total = 0;
  for (int l = 0; l < kLanes; ++l) {
    total += lane[l];
  }
  return total;
}

// rows x count values, each row cut into chunks: sums[row] = the sum of chunk_sum(row, begin, end) over its chunks.
template <typename ChunkSum>
std::vector<double> sums_of_rows(int64_t rows, int64_t count, const ChunkSum& chunk_sum) {
  const int64_t chunks = (count + kSumChunk - 1) / kSumChunk;
  std::vector<double> partial(rows * chunks), sums(rows);
  torch::stable::parallel_for(0, rows * chunks, std::max<int64_t>(1, kGrainValues / kSumChunk),
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) {
                                  const int64_t first = i % chunks * kSumChunk;
                                  partial[i] = chunk_sum(i / chunks, first, std::min(first + kSumChunk, count));
                                }
                              });
  for (int64_t i = 0; i < rows * chunks; ++i) {
    sums[i / chunks] += partial[i];
  }
  return sums;
}

template <typename A, typename T>
APEM_FAST_VECTOR_VERSIONS double magnitude_sum(const T* relevance, int64_t count, bool irrelevance) {
  double lane[kLanes] = {};
  const auto magnitude = [irrelevance](T r) {
    const A value = applied_relevance(static_cast<A>(r), irrelevance);
    return static_cast<double>(std::abs(value));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lane[l] += magnitude(relevance[i + l]);
    }
  }
  for (; i < count; ++i) {
    lane[0] += magnitude(relevance[i]);
  }
  return sum_of_lanes(lane);
}

// The l1 norm of the perturbation that each map makes, once it is broadcast to the channels.
template <typename T>
std::vector<arithmetic_t<T>> perturbation_norms(const T* relevance, int64_t maps, const TiledImage& t,
                                                bool irrelevance) {
  using A = arithmetic_t<T>;
  const std::vector<double> sums = sums_of_rows(maps, t.map_size, [&](int64_t n, int64_t begin, int64_t end) {
    return magnitude_sum<A>(relevance + n * t.map_size + begin, end - begin, irrelevance);
  });
  const double repeats = t.map_has_channels ? 1 : static_cast<double>(t.channels);
  std::vector<A> norms;
  for (const double sum : sums) {
    norms.push_back(static_cast<A>(sum * repeats));
  }
  return norms;
}

}  // namespace apem_fast
