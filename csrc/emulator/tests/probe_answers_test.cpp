#include "cuda/probe_answers_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

template <typename T>
void test(int64_t classes, int64_t offset, bool some_above) {
  using A = arithmetic_t<T>;
  const int64_t n = 7;
  Random random;
  Buffer<T> logits(n * classes, offset);
  Buffer<int64_t> labels(n);
  Buffer<bool> above(n * classes, offset);
  Buffer<double> out(3 * n);
  logits.fill([&](int64_t) { return static_cast<float>(random.below(17) - 8); });
  labels.fill([&](int64_t) { return random.below(classes); });
  above.fill([&](int64_t) { return random.below(4) == 0; });
  for (int64_t row = 0; row < n; ++row) {
    above[row * classes + labels[row]] = false;
  }
  logits[classes + classes / 2] = std::numeric_limits<float>::quiet_NaN();  // one that takes part
  above[classes + classes / 2] = false;
  labels[0] = -1;  // out of range on either side of all there is: NaN, and nothing read
  labels[n - 1] = classes;

  launch_probe_answers<kBlock>(ProbeAnswersArguments<T>{logits.data(), labels.data(),
                                                        some_above ? above.data() : nullptr, out.data(), n, classes},
                               nullptr);
  for (int64_t row = 0; row < n; ++row) {
    const bool exists = row != 0 && row != n - 1;
    const A lowest = -std::numeric_limits<A>::infinity();
    A greatest = lowest, other = lowest, magnitude = 0;
    int64_t predicted = 0;
    for (int64_t i = 0; i < classes; ++i) {
      const A logit = static_cast<A>(logits[row * classes + i]);
      const A value = some_above && above[row * classes + i] ? lowest : logit;
      magnitude = std::max(magnitude, std::abs(logit));
      predicted = value > greatest ? i : predicted;
      greatest = std::max(greatest, value);
      other = i == labels[row] ? other : std::max(other, value);
    }
    const double margin = out[row], flipped = out[n + row], most = out[2 * n + row];
    if (row == 1) {
      EXPECT(std::isnan(margin) && std::isnan(most));
      EXPECT(flipped == (labels[row] != classes / 2));  // a NaN counts as the greatest
      continue;
    }
    EXPECT(most == static_cast<double>(magnitude));
    if (exists) {
      const A own = static_cast<A>(logits[row * classes + labels[row]]);
      EXPECT(same(margin, static_cast<double>(static_cast<T>(own - other))));
      EXPECT(flipped == (predicted != labels[row]));
    } else {
      EXPECT(std::isnan(margin) && flipped == 1);
    }
  }
}

}  // namespace

int main() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t classes : {2, 10, 63, 64, 65, 1000, 1001}) {
      for (const bool some_above : {false, true}) {
        test<float>(classes, offset, some_above);
        test<double>(classes, offset, some_above);
        test<BFloat16>(classes, offset, some_above);
      }
    }
  }
  return result();
}
