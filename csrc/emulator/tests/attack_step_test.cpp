#include "cuda/attack_step_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

// `mask_channels` 0: no region.
template <typename T>
void test(int64_t channels, int64_t pixels, bool channels_last, bool damped, bool put_back, int64_t mask_channels,
          bool own_masks, int64_t offset) {
  using A = arithmetic_t<T>;
  const int64_t n = 2, size = channels * pixels, mask_size = mask_channels * pixels;
  const A step_size = A(0.5), damping = A(0.75), lower = A(-0.5), upper = A(0.75), threshold = A(0.25);
  Random random;
  Buffer<T> value(n * size, offset), gradient(n * size, offset), previous(n * size, offset);
  Buffer<T> original(n * size, offset), out(n * size, offset);
  Buffer<uint8_t> region(own_masks ? n * mask_size : mask_size, offset);
  for (Buffer<T>* buffer : {&value, &gradient, &previous, &original}) {
    buffer->fill([&](int64_t) { return static_cast<float>(random.centred()); });
  }
  region.fill([&](int64_t) { return random.below(2); });
  value[size / 2] = std::numeric_limits<float>::quiet_NaN();
  const bool apart = !put_back && mask_channels != 1;

  launch_attack_step<kBlock>(
      AttackStepArguments<T>{value.data(), gradient.data(), damped ? previous.data() : nullptr,
                             put_back ? original.data() : nullptr, mask_channels ? region.data() : nullptr, out.data(),
                             n, own_masks ? mask_size : 0, Cover(channels, pixels, apart ? channels : 1, channels_last),
                             mask_channels == channels, step_size, damping, lower, upper, threshold},
      nullptr);
  for (int64_t image = 0; image < n; ++image) {
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      std::vector<A> moved(channels);
      A squared = 0;
      const auto at = [&](int64_t c) { return channels_last ? pixel * channels + c : c * pixels + pixel; };
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t i = image * size + at(c);
        const A step = step_size * static_cast<A>(gradient[i]) + (damped ? damping * static_cast<A>(previous[i]) : 0);
        moved[c] = clamped(static_cast<A>(value[i]) - step, lower, upper);
        squared += (moved[c] - static_cast<A>(original[i])) * (moved[c] - static_cast<A>(original[i]));
      }
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t i = image * size + at(c), mask_at = mask_channels == channels ? at(c) : pixel;
        const bool inside = mask_channels == 0 || region[(own_masks ? image * mask_size : 0) + mask_at];
        const T expected = put_back && squared <= threshold ? original[i] : static_cast<T>(moved[c]);
        EXPECT(same(out[i], inside ? expected : value[i]));
      }
    }
  }
}

template <typename T>
void test_shapes() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t pixels : {1, 15, 16, 520}) {
      for (const bool channels_last : {false, true}) {
        for (const bool put_back : {false, true}) {
          test<T>(3, pixels, channels_last, true, put_back, 0, false, offset);
          test<T>(3, pixels, channels_last, false, put_back, 1, true, offset);
          test<T>(3, pixels, channels_last, true, put_back, 3, false, offset);
        }
        test<T>(2, pixels, channels_last, true, true, 1, false, offset);
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
