// zero_levels on the CPU: one pass over a map for each threshold, which writes the zeroed map and sums what it writes.

#include "sums.h"

#include <cmath>
#include <tuple>

namespace apem_fast {
namespace {

struct Sums {
  double relevance, irrelevance;
};

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS Sums write_zeroed(T* out, const T* map, int64_t count, A level) {
  double relevance[kLanes] = {}, irrelevance[kLanes] = {};
  const auto step = [&](int64_t i, int lane) {
    const A value = probe_relevance(static_cast<A>(map[i]), level, false);
    out[i] = static_cast<T>(value);
    relevance[lane] += static_cast<double>(std::abs(value));
    irrelevance[lane] += static_cast<double>(std::abs(applied_relevance(value, true)));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      step(i + lane, lane);
    }
  }
  for (; i < count; ++i) {
    step(i, 0);
  }
  return {sum_of_lanes(relevance), sum_of_lanes(irrelevance)};
}

std::tuple<Tensor, Tensor> zero_levels(const Tensor& relevance, const Tensor& threshold) {
  checks::zero_levels(relevance, threshold);
  const MemoryFormat format = image_format(relevance);
  const int64_t n = relevance.size(0), levels = threshold.size(threshold.dim() - 1);
  const int64_t c = relevance.size(1), h = relevance.size(2), w = relevance.size(3), size = c * h * w;
  Tensor out = empty_output(relevance, {n * levels, c, h, w}, relevance.scalar_type(), format);
  Tensor norms = empty_output(relevance, {n, levels, 2}, ScalarType::Double, MemoryFormat::Contiguous);
  const Tensor result = torch::stable::view(out, {n, levels, c, h, w});
  const Tensor r = torch::stable::contiguous(relevance, format);  // [N, C', H, W]
  const Tensor t = torch::stable::contiguous(threshold);          // [L] or [N, L]
  const int64_t chunks = (size + kSumChunk - 1) / kSumChunk;
  std::vector<Sums> partial(n * levels * chunks);

  dispatch_floating(relevance.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const auto level_at = [&](int64_t row) {
      const int64_t at = threshold.dim() == 2 ? row : row % levels;
      return t.scalar_type() == ScalarType::Double ? static_cast<A>(data_of<double>(t)[at])
                                                   : static_cast<A>(data_of<float>(t)[at]);
    };
    // Chunks of a map are the outer loop: a chunk is still in the cache for its next threshold.
    const int64_t grain = std::max<int64_t>(1, kGrainValues / (std::min(kSumChunk, size + 1) * (levels + 1)));
    torch::stable::parallel_for(0, n * chunks, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t map = i / chunks, chunk = i % chunks, first = chunk * kSumChunk;
        const int64_t count = std::min(kSumChunk, size - first);
        for (int64_t row = map * levels; row < (map + 1) * levels; ++row) {
          partial[row * chunks + chunk] = write_zeroed(mutable_data_of<T>(out) + row * size + first,
                                                       data_of<T>(r) + map * size + first, count, level_at(row));
        }
      }
    });
  });
  double* norm = mutable_data_of<double>(norms);
  for (int64_t row = 0; row < n * levels; ++row) {
    norm[2 * row] = norm[2 * row + 1] = 0;
    for (int64_t i = row * chunks; i < (row + 1) * chunks; ++i) {
      norm[2 * row] += partial[i].relevance;
      norm[2 * row + 1] += partial[i].irrelevance;
    }
  }
  return {result, norms};
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) { APEM_FAST_KERNEL(m, zero_levels); }

}  // namespace apem_fast
