// first_flip on the CPU: one pass over the predictions of each ray.

#include "tiles.h"

namespace apem_fast {
namespace {

Tensor first_flip(const Tensor& predicted, const Tensor& labels, const Tensor& epsilon) {
  checks::first_flip(predicted, labels, epsilon);
  const int64_t rays = predicted.size(0), count = predicted.size(1);
  Tensor out = torch::stable::new_empty(epsilon, {rays});
  const Tensor p = torch::stable::contiguous(predicted);  // [R, K]
  const Tensor l = torch::stable::contiguous(labels);     // [R]
  const Tensor e = torch::stable::contiguous(epsilon);    // [K] or [R, K]
  const int64_t epsilons_per_ray = epsilon.dim() == 2 ? count : 0;

  const auto run = [&](auto value) {
    using E = decltype(value);
    const int64_t grain = std::max<int64_t>(1, kGrainValues / std::max<int64_t>(count, 1));
    torch::stable::parallel_for(0, rays, grain, [&](int64_t begin, int64_t end) {
      for (int64_t ray = begin; ray < end; ++ray) {
        const int64_t label = data_of<int64_t>(l)[ray], *prediction = data_of<int64_t>(p) + ray * count;
        const E* steps = data_of<E>(e) + ray * epsilons_per_ray;
        E first = std::numeric_limits<E>::infinity();
        for (int64_t k = 0; k < count; ++k) {
          first = earlier_flip(first, flip_epsilon(prediction[k], label, steps[k]));
        }
        mutable_data_of<E>(out)[ray] = first;
      }
    });
  };
  epsilon.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(apem_fast, CPU, m) { m.impl("first_flip", TORCH_BOX(&first_flip)); }

}  // namespace apem_fast
