#include "cuda/first_flip_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

template <typename E>
void test(int64_t count, bool own_epsilons, int64_t offset) {
  const int64_t rays = 7;
  Random random;
  Buffer<int64_t> predicted(rays * count, offset), labels(rays);
  Buffer<E> epsilon(own_epsilons ? rays * count : count, offset), out(rays);
  labels.fill([&](int64_t) { return random.below(3); });
  predicted.fill([&](int64_t i) { return i / count == 2 || random.below(count) > 2 ? labels[i / count] : 3; });
  epsilon.fill([&](int64_t) { return static_cast<E>(random.uniform()); });

  launch_first_flip<kBlock>(FirstFlipArguments<E>{predicted.data(), labels.data(), epsilon.data(), out.data(), rays,
                                                  count, own_epsilons ? count : 0},
                            nullptr);
  for (int64_t r = 0; r < rays; ++r) {
    E first = std::numeric_limits<E>::infinity();
    for (int64_t k = 0; k < count; ++k) {
      if (predicted[r * count + k] != labels[r]) {
        first = std::min(first, epsilon[(own_epsilons ? r * count : 0) + k]);
      }
    }
    EXPECT(out[r] == first);
  }
}

}  // namespace

int main() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t count : {1, 2, 63, 64, 65, 1000, 1001}) {
      for (const bool own_epsilons : {false, true}) {
        test<float>(count, own_epsilons, offset);
        test<double>(count, own_epsilons, offset);
      }
    }
  }
  return result();
}
