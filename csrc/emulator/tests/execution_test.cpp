// The emulator itself, the reductions, and the choice between vectors and single elements.

#include "cuda/access.cuh"
#include "cuda/reduction.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

struct Arguments {
  const unsigned* values;  // one for each thread of the grid, as the two below
  unsigned* before;
  double* sums;
  int* rounds;  // of blocks
};

template <int kThreads>
__global__ void reductions(Arguments a) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned i = block * kThreads + threadIdx.x;
  a.before[i] = block_exclusive_sum<kThreads>(a.values[i]);
  const double sum = block_reduce<kThreads>(static_cast<double>(a.values[i]), [](double x, double y) { return x + y; });
  const unsigned most = block_reduce<kThreads>(a.values[i], [](unsigned x, unsigned y) { return x > y ? x : y; });
  a.sums[i] = sum + most;
  if (threadIdx.x == 0) {
    atomicAdd(a.rounds, 1);
  }
}

template <int kThreads>
void test_reductions() {
  const int64_t blocks = 3 * 2 * 2, count = blocks * kThreads;
  Buffer<unsigned> values(count), before(count);
  Buffer<double> sums(count);
  Buffer<int> rounds(1);
  Random random;
  values.fill([&](int64_t) { return random.below(1000); });
  launch(reductions<kThreads>, 3, 2, 2, kThreads, nullptr,
         Arguments{values.data(), before.data(), sums.data(), rounds.data()});
  EXPECT(rounds[0] == blocks);
  for (int64_t block = 0; block < blocks; ++block) {
    unsigned sum = 0, most = 0;
    for (int64_t i = block * kThreads; i < (block + 1) * kThreads; ++i) {
      EXPECT(before[i] == sum);
      sum += values[i];
      most = std::max(most, values[i]);
    }
    for (int64_t i = block * kThreads; i < (block + 1) * kThreads; ++i) {
      EXPECT(sums[i] == static_cast<double>(sum) + most);
    }
  }
}

void test_vectors_where_they_fit() {
  alignas(16) static float floats[64];
  alignas(16) static int8_t bytes[64];
  EXPECT(fits_vectors(4, 12, floats, bytes));
  EXPECT(!fits_vectors(4, 13, floats, bytes));  // the second row would not start on a boundary
  EXPECT(!fits_vectors(4, 12, floats + 1, bytes));
  EXPECT(fits_vectors(4, 12, floats + 4, bytes + 4));  // four bytes are read at once, not sixteen
  EXPECT(!fits_vectors(4, 12, floats, bytes + 2));
  static_assert(Access<float, 64, true>::kElements == 4 && Access<float, 64, false>::kElements == 1);
  static_assert(Access<double, 64, true>::kElements == 2 && Access<BFloat16, 64, true>::kElements == 8);
  static_assert(std::is_same_v<narrower_t<float, BFloat16>, BFloat16>);
  static_assert(sizeof(Pack<float, 8>) == 32 && alignof(Pack<float, 8>) == 16 && alignof(Pack<int8_t, 4>) == 4);
}

}  // namespace

int main() {
  test_reductions<32>();
  test_reductions<64>();
  test_reductions<256>();
  test_vectors_where_they_fit();
  return result();
}
