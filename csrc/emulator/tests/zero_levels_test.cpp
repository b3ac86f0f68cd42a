#include "cuda/zero_levels_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

template <typename T, typename E>
void test(int64_t size, bool own_thresholds, int64_t offset) {
  using A = arithmetic_t<T>;
  const int64_t maps = 2, levels = 3;
  Random random;
  Buffer<T> relevance(maps * size, offset), out(maps * levels * size, offset);
  Buffer<E> threshold(own_thresholds ? maps * levels : levels, offset);
  Buffer<double> norms(maps * levels * 2);
  relevance.fill([&](int64_t) { return static_cast<float>(random.below(9)) / 8; });  // any order of summation is exact
  threshold.fill([&](int64_t i) { return i == 1 ? 0.5 : random.uniform(); });

  launch_zero_levels<kBlock>(ZeroLevelsArguments<T, E>{relevance.data(), threshold.data(), out.data(), norms.data(),
                                                       maps, levels, size, own_thresholds ? levels : 0},
                             nullptr);
  for (int64_t row = 0; row < maps * levels; ++row) {
    const int64_t map = row / levels;
    const A level = static_cast<A>(threshold[own_thresholds ? row : row % levels]);
    double sum = 0, inverse = 0;
    for (int64_t i = 0; i < size; ++i) {
      const A value = static_cast<A>(relevance[map * size + i]);
      const A zeroed = value <= level ? A(0) : value;
      EXPECT(same(out[row * size + i], static_cast<T>(zeroed)));
      sum += zeroed;
      inverse += 1 - zeroed;
    }
    EXPECT(norms[2 * row] == sum && norms[2 * row + 1] == inverse);
  }
}

}  // namespace

int main() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t size : {1, 15, 16, 248, 1040}) {
      for (const bool own_thresholds : {false, true}) {
        test<float, float>(size, own_thresholds, offset);
        test<double, double>(size, own_thresholds, offset);
        test<BFloat16, double>(size, own_thresholds, offset);
      }
    }
  }
  return result();
}
