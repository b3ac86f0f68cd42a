#include "cuda/label_margin_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

template <typename T>
void test(int64_t classes, int64_t offset) {
  using A = arithmetic_t<T>;
  const int64_t n = 7;
  Random random;
  Buffer<T> logits(n * classes, offset), grad_logits(n * classes, offset), margin(n), grad(n);
  Buffer<int64_t> labels(n), predicted(n);
  logits.fill([&](int64_t) { return static_cast<float>(random.below(17) - 8); });
  grad.fill([&](int64_t) { return static_cast<float>(random.centred()); });
  labels.fill([&](int64_t) { return random.below(classes); });
  logits[classes + classes / 2] = std::numeric_limits<float>::quiet_NaN();
  labels[3] = classes;  // out of range on either side: NaN, and nothing read
  labels[4] = -1;

  launch_label_margin<kBlock>(
      LabelMarginArguments<T>{logits.data(), labels.data(), margin.data(), predicted.data(), n, classes}, nullptr);
  launch_label_margin_backward<kBlock>(
      LabelMarginBackwardArguments<T>{grad.data(), logits.data(), labels.data(), grad_logits.data(), n, classes},
      nullptr);
  for (int64_t row = 0; row < n; ++row) {
    const T* values = logits.data() + row * classes;
    int64_t best = 0, other = -1;
    bool missing = false;
    for (int64_t i = 0; i < classes; ++i) {
      if (std::isnan(static_cast<float>(values[i])) && !missing) {
        missing = true;
        best = i;
      }
      best = !missing && static_cast<A>(values[i]) > static_cast<A>(values[best]) ? i : best;
    }
    for (int64_t i = 0; i < classes; ++i) {
      const auto rank = [&](int64_t j) {
        const A value = static_cast<A>(values[j]);
        return std::isnan(value) ? std::numeric_limits<A>::infinity() : value;
      };
      other = i != labels[row] && (other < 0 || rank(i) > rank(other)) ? i : other;
    }
    EXPECT(predicted[row] == best);
    const bool exists = row != 3 && row != 4;
    if (missing || !exists) {
      EXPECT(std::isnan(static_cast<double>(margin[row])));
    } else {
      EXPECT(same(margin[row], static_cast<T>(static_cast<A>(values[labels[row]]) - static_cast<A>(values[other]))));
    }
    for (int64_t i = 0; i < classes; ++i) {
      const double g = static_cast<double>(grad[row]);
      const double expected = !exists ? std::nan("") : i == labels[row] ? g : i == other ? -g : 0;
      EXPECT(same(static_cast<double>(grad_logits[row * classes + i]), expected));
    }
  }
}

}  // namespace

int main() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t classes : {2, 10, 63, 64, 65, 1000, 1001}) {
      test<float>(classes, offset);
      test<double>(classes, offset);
      test<BFloat16>(classes, offset);
    }
  }
  return result();
}
