#include "cuda/perturb_probes_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

template <typename T, typename G, typename O>
void test(int64_t channels, int64_t pixels, int64_t map_channels, bool channels_last, int64_t offset) {
  using A = arithmetic_t<T>;
  const int64_t images = 2, maps = 3, probes = 7, size = channels * pixels, map_size = map_channels * pixels;
  Random random;
  Buffer<T> image(images * size, offset), map(maps * map_size, offset);
  Buffer<G> gradient(images * size, offset);
  Buffer<O> out(probes * size, offset);
  Buffer<double> norm(probes), epsilon(probes), level(probes);
  Buffer<int64_t> row(probes), map_row(probes);
  Buffer<bool> irrelevance(probes);
  image.fill([&](int64_t) { return static_cast<float>(random.centred()); });
  map.fill([&](int64_t) { return static_cast<float>(random.below(5)) / 4; });
  gradient.fill([&](int64_t) { return static_cast<float>(random.below(3) - 1); });
  norm.fill([&](int64_t) { return 1 + random.uniform(); });
  epsilon.fill([&](int64_t) { return random.uniform(); });
  level.fill([&](int64_t) { return random.uniform() - 0.25; });
  row.fill([&](int64_t) { return random.below(images); });
  map_row.fill([&](int64_t) { return random.below(maps); });
  irrelevance.fill([&](int64_t i) { return i % 2 == 1; });
  row[3] = images;  // out of range on either side: NaN, and nothing read
  map_row[4] = -1;

  launch_perturb_probes<kBlock>(
      PerturbProbesArguments<T, G, O>{image.data(), map.data(), gradient.data(), norm.data(), row.data(),
                                      map_row.data(), irrelevance.data(), epsilon.data(), level.data(), out.data(),
                                      probes, images, maps, Cover(channels, pixels, map_channels, channels_last), -0.75,
                                      0.75},
      nullptr);
  for (int64_t m = 0; m < probes; ++m) {
    for (int64_t i = 0; i < size; ++i) {
      const O written = out[m * size + i];
      if (m == 3 || m == 4) {
        EXPECT(std::isnan(static_cast<double>(written)));
        continue;
      }
      const int64_t at = map_channels == channels ? i : channels_last ? i / channels : i % pixels;
      const A relevance =
          probe_relevance(static_cast<A>(map[map_row[m] * map_size + at]), static_cast<A>(level[m]), irrelevance[m]);
      const A direction = directed(relevance, static_cast<A>(norm[m]), sign_of<A>(gradient[row[m] * size + i]));
      const A value = perturbed(static_cast<A>(image[row[m] * size + i]), static_cast<A>(epsilon[m]), direction);
      EXPECT(same(written, static_cast<O>(clamped(value, A(-0.75), A(0.75)))));
    }
  }
}

template <typename T, typename G, typename O>
void test_shapes() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t pixels : {1, 15, 16, 248, 1040}) {
      for (const bool channels_last : {false, true}) {
        test<T, G, O>(3, pixels, 1, channels_last, offset);
        test<T, G, O>(3, pixels, 3, channels_last, offset);
        test<T, G, O>(4, pixels, 1, channels_last, offset);
        test<T, G, O>(1, pixels, 1, channels_last, offset);
      }
    }
  }
}

}  // namespace

int main() {
  test_shapes<float, float, float>();
  test_shapes<float, int8_t, BFloat16>();
  test_shapes<double, int8_t, double>();
  test_shapes<BFloat16, BFloat16, BFloat16>();
  return result();
}
