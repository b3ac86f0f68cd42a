#include "cuda/directed_relevance_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

template <typename T, typename G>
void test(int64_t channels, int64_t pixels, int64_t map_channels, bool channels_last, bool irrelevance,
          int64_t offset) {
  using A = arithmetic_t<T>;
  const double tolerance = sizeof(T) == 2 ? 0.02 : sizeof(T) == 4 ? 1e-5 : 1e-12;
  const int64_t n = 3, size = channels * pixels, map_size = map_channels * pixels;
  const Cover cover(channels, pixels, map_channels, channels_last);
  const int64_t chunks = chunks_of(cover.pixels);
  Random random;
  Buffer<T> map(n * map_size, offset), direction(n * size, offset);
  Buffer<T> grad(n * size, offset), grad_map(n * map_size, offset);
  Buffer<G> gradient(n * size, offset);
  Buffer<A> channel_sums(n * map_size, offset);
  Buffer<double> norm_chunks(n * chunks), along_chunks(n * chunks);
  map.fill([&](int64_t) { return static_cast<float>(random.below(9)) / 8; });
  map.fill([&](int64_t i) { return i % map_size == 0 ? 0.25f : static_cast<float>(map[i]); });
  grad.fill([&](int64_t) { return static_cast<float>(random.centred()); });
  gradient.fill([&](int64_t) { return static_cast<float>(random.below(3) - 1); });

  launch_directed_relevance<kBlock>(DirectedRelevanceArguments<T, G>{map.data(), gradient.data(), direction.data(),
                                                                     norm_chunks.data(), n, chunks, cover, irrelevance},
                                    nullptr);
  launch_directed_relevance_backward<kBlock>(
      DirectedRelevanceBackwardArguments<T, G>{grad.data(), map.data(), gradient.data(), grad_map.data(),
                                               channel_sums.data(), norm_chunks.data(), along_chunks.data(), n, chunks,
                                               cover, irrelevance},
      nullptr);
  const auto map_at = [&](int64_t image, int64_t i) {
    const int64_t at = map_channels == channels ? i : channels_last ? i / channels : i % pixels;
    return image * map_size + at;
  };
  for (int64_t image = 0; image < n; ++image) {
    double norm = 0, along = 0;
    for (int64_t i = 0; i < size; ++i) {
      norm += std::fabs(static_cast<double>(applied_relevance(static_cast<A>(map[map_at(image, i)]), irrelevance)));
    }
    std::vector<double> directed_grad(map_size);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t at = image * size + i;
      const A value = applied_relevance(static_cast<A>(map[map_at(image, i)]), irrelevance);
      const A sign = sign_of<A>(gradient[at]);
      EXPECT(near(static_cast<double>(direction[at]), value / norm * sign, tolerance));
      along += static_cast<double>(grad[at]) * sign * (value / norm);
      directed_grad[map_at(0, i)] += static_cast<double>(grad[at]) * sign;
    }
    for (int64_t i = 0; i < map_size; ++i) {
      const double value = applied_relevance(static_cast<double>(map[image * map_size + i]), irrelevance);
      const double expected = relevance_gradient(directed_grad[i], value, along,
                                                 static_cast<double>(channels / map_channels), norm, irrelevance);
      const double largest_term = (static_cast<double>(channels) + std::fabs(along) * channels) / norm;
      EXPECT(std::fabs(static_cast<double>(grad_map[image * map_size + i]) - expected) <= tolerance * largest_term);
    }
  }
}

template <typename T, typename G>
void test_shapes() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t pixels : {1, 15, 16, 248, 1040}) {
      for (const bool channels_last : {false, true}) {
        test<T, G>(3, pixels, 1, channels_last, pixels > 1, offset);
        test<T, G>(3, pixels, 3, channels_last, false, offset);
        test<T, G>(4, pixels, 1, channels_last, false, offset);
      }
    }
  }
  test<T, G>(2, 17000, 1, false, false, 0);  // several chunks
}

}  // namespace

int main() {
  test_shapes<float, float>();
  test_shapes<double, int8_t>();
  test_shapes<BFloat16, int8_t>();
  return result();
}
