#include "cuda/attack_penalty_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

template <typename T>
void test(int64_t channels, int64_t height, int64_t width, bool channels_last, int64_t offset) {
  using A = arithmetic_t<T>;
  const int64_t n = 2, pixels = height * width, size = channels * pixels;
  const int64_t chunks = chunks_of(pixels) + 1;  // the last may have nothing to do
  const double tv = 0.5, zero = 0.25, diff = 2;
  Random random;
  Buffer<T> perturbed(n * size, offset), original(n * size, offset), gradient(n * size, offset);
  Buffer<PenaltyTerms> chunk_terms(n * chunks), terms(n);
  Buffer<double> penalty(n), grad(n);
  original.fill([&](int64_t) { return static_cast<float>(random.below(9)) / 8; });
  perturbed.fill([&](int64_t i) { return static_cast<float>(original[i]) + static_cast<float>(random.below(3)) / 8; });
  grad.fill([&](int64_t) { return random.centred(); });
  const Cover cover(channels, pixels, 1, channels_last);

  launch_attack_penalty<kBlock>(
      AttackPenaltyArguments<T>{perturbed.data(), original.data(), chunk_terms.data(), terms.data(), penalty.data(), n,
                                chunks, width, cover, tv, zero, diff},
      nullptr);
  launch_attack_penalty_backward<kBlock>(
      AttackPenaltyBackwardArguments<T>{grad.data(), perturbed.data(), original.data(), gradient.data(), n, width,
                                        cover, tv, diff},
      nullptr);
  for (int64_t image = 0; image < n; ++image) {
    const auto at = [&](int64_t c, int64_t i, int64_t j) {
      const int64_t pixel = i * width + j;
      return image * size + (channels_last ? pixel * channels + c : c * pixels + pixel);
    };
    const auto e = [&](int64_t c, int64_t i, int64_t j) {
      return static_cast<A>(perturbed[at(c, i, j)]) - static_cast<A>(original[at(c, i, j)]);
    };
    PenaltyTerms expected{0, 0, 0};
    std::vector<A> signs(size);
    const auto sign_at = [&](int64_t c, int64_t i, int64_t j) -> A& { return signs[at(c, i, j) - image * size]; };
    for (int64_t i = 0; i < height; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        bool changed = false;
        for (int64_t c = 0; c < channels; ++c) {
          const A own = e(c, i, j);
          changed = changed || own != 0;
          expected.squared += own * own;
          if (i + 1 < height && j + 1 < width) {
            for (const auto& [k, l] : {std::pair{i + 1, j}, std::pair{i, j + 1}}) {
              expected.variation += std::fabs(own - e(c, k, l));
              sign_at(c, i, j) += sign_of<A>(own - e(c, k, l));
              sign_at(c, k, l) -= sign_of<A>(own - e(c, k, l));
            }
          }
        }
        expected.changed += changed;
      }
    }
    expected.squared /= static_cast<double>(size);
    EXPECT(near(terms[image].variation, expected.variation, 1e-12));
    EXPECT(terms[image].changed == expected.changed);
    EXPECT(near(terms[image].squared, expected.squared, 1e-12));
    EXPECT(near(penalty[image], tv * expected.variation + zero * expected.changed + diff * expected.squared, 1e-12));
    const A variation = static_cast<A>(grad[image] * tv);
    const A squared = static_cast<A>(grad[image] * (2 * diff / static_cast<double>(size)));
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < height; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          EXPECT(same(gradient[at(c, i, j)], static_cast<T>(variation * sign_at(c, i, j) + squared * e(c, i, j))));
        }
      }
    }
  }
}

template <typename T>
void test_shapes() {
  for (const int64_t offset : {0, 1}) {
    for (const bool channels_last : {false, true}) {
      test<T>(3, 1, 1, channels_last, offset);
      test<T>(3, 5, 8, channels_last, offset);
      test<T>(3, 2, 24, channels_last, offset);
      test<T>(3, 7, 9, channels_last, offset);
      test<T>(2, 1, 16, channels_last, offset);
      test<T>(1, 16, 1, channels_last, offset);
    }
  }
  test<T>(1, 160, 64, false, 0);  // several chunks
}

}  // namespace

int main() {
  test_shapes<float>();
  test_shapes<double>();
  test_shapes<BFloat16>();
  return result();
}
