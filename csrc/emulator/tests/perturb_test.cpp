#include "cuda/perturb_kernel.cuh"
#include "testing.h"

using namespace apem_fast;
using namespace testing;

namespace {

template <typename T, typename E>
void test(int64_t n, int64_t k, int64_t size, bool own_epsilons, int64_t offset) {
  using A = arithmetic_t<T>;
  Random random;
  Buffer<T> images(n * size, offset), direction(n * size, offset), out(n * k * size, offset);
  Buffer<T> grad(n * k * size, offset), grad_images(n * size, offset), grad_direction(n * size, offset);
  Buffer<E> epsilon(own_epsilons ? n * k : k);
  images.fill([&](int64_t) { return static_cast<float>(random.centred()); });
  direction.fill([&](int64_t) { return static_cast<float>(random.centred()); });
  grad.fill([&](int64_t) { return static_cast<float>(random.centred()); });
  epsilon.fill([&](int64_t) { return static_cast<float>(random.uniform()); });
  const int64_t stride = own_epsilons ? k : 0;

  launch_perturb<kBlock>(PerturbArguments<T, E>{images.data(), direction.data(), epsilon.data(), out.data(), n, k, size,
                                                stride, -0.75, 0.75},
                         nullptr);
  launch_perturb_backward<kBlock>(
      PerturbBackwardArguments<T, E>{grad.data(), images.data(), direction.data(), grad_images.data(),
                                     grad_direction.data(), epsilon.data(), n, k, size, stride, -0.75, 0.75},
      nullptr);
  for (int64_t i = 0; i < n * size; ++i) {
    A of_image = 0, of_direction = 0;
    for (int64_t j = 0; j < k; ++j) {
      const A step = static_cast<A>(static_cast<double>(epsilon[i / size * stride + j]));
      const A value = perturbed(static_cast<A>(images[i]), step, static_cast<A>(direction[i]));
      const int64_t at = (i / size * k + j) * size + i % size;
      EXPECT(same(out[at], static_cast<T>(clamped(value, A(-0.75), A(0.75)))));
      const A passed = passed_gradient(static_cast<A>(grad[at]), value, A(-0.75), A(0.75));
      of_image += passed;
      of_direction += step * passed;
    }
    EXPECT(same(grad_images[i], static_cast<T>(of_image)));
    EXPECT(same(grad_direction[i], static_cast<T>(of_direction)));
  }
}

template <typename T, typename E>
void test_shapes() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t size : {1, 63, 64, 65, 520, 2056}) {
      test<T, E>(3, 5, size, false, offset);
      test<T, E>(2, 5, size, true, offset);
    }
    test<T, E>(1, 83, 24, false, offset);
  }
}

}  // namespace

int main() {
  test_shapes<float, float>();
  test_shapes<double, double>();
  test_shapes<BFloat16, double>();
  return result();
}
