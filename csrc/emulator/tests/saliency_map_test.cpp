#include "cuda/saliency_map_kernel.cuh"
#include "testing.h"

#include <algorithm>

using namespace apem_fast;
using namespace testing;

namespace {

template <typename T>
void test(int64_t channels, int64_t pixels, bool channels_last, int64_t offset) {
  using A = arithmetic_t<T>;
  const int64_t n = 3, size = channels * pixels, chunks = chunks_of(pixels) + 1;  // the last may have nothing to do
  Random random;
  Buffer<T> original(n * size, offset), perturbed(n * size, offset), out(n * pixels, offset);
  Buffer<A> distance(n * pixels);
  Buffer<Extent<A>> chunk_extents(n * chunks);
  original.fill([&](int64_t) { return static_cast<float>(random.centred()); });
  perturbed.fill([&](int64_t i) {  // nothing changed in the first image
    return i < size ? static_cast<float>(original[i]) : static_cast<float>(random.centred());
  });
  perturbed[2 * size + size / 2] = std::numeric_limits<float>::quiet_NaN();

  launch_saliency_map<kBlock>(
      SaliencyMapArguments<T>{original.data(), perturbed.data(), distance.data(), chunk_extents.data(), out.data(), n,
                              chunks, Cover(channels, pixels, 1, channels_last)},
      nullptr);
  for (int64_t image = 0; image < n; ++image) {
    std::vector<A> expected(pixels);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t i = image * size + (channels_last ? pixel * channels + c : c * pixels + pixel);
        const A difference = static_cast<A>(original[i]) - static_cast<A>(perturbed[i]);
        expected[pixel] += difference * difference;
      }
      expected[pixel] = std::sqrt(expected[pixel]);
    }
    const A low = *std::min_element(expected.begin(), expected.end());
    const A high = *std::max_element(expected.begin(), expected.end());
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const T written = out[image * pixels + pixel];
      if (image == 2) {
        EXPECT(std::isnan(static_cast<double>(written)));
      } else if (high == low) {
        EXPECT(written == static_cast<T>(low == 0 ? 0.0f : 0.5f));
      } else {
        EXPECT(same(written, static_cast<T>((expected[pixel] - low) / (high - low))));
      }
    }
  }
}

template <typename T>
void test_shapes() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t pixels : {1, 15, 16, 520, 9000}) {
      for (const bool channels_last : {false, true}) {
        test<T>(3, pixels, channels_last, offset);
        test<T>(2, std::min<int64_t>(pixels, 520), channels_last, offset);
      }
    }
  }
}

}  // namespace

int main() {
  test_shapes<float>();
  test_shapes<double>();
  test_shapes<BFloat16>();
  return result();
}
