// first_flip on the CPU: one pass over the predictions of each ray.

#include "tiles.h"

namespace apem_fast {
namespace {

template <typename E>
APEM_FAST_VECTOR_VERSIONS E first_flip_of(const int64_t* predicted, int64_t label, const E* epsilon, int64_t count) {
  E lane[kLanes];
  std::fill(lane, lane + kLanes, std::numeric_limits<E>::infinity());
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lane[l] = earlier_flip(lane[l], flip_epsilon(predicted[k + l], label, epsilon[k + l]));
    }
  }
  for (; k < count; ++k) {
    lane[0] = earlier_flip(lane[0], flip_epsilon(predicted[k], label, epsilon[k]));
  }
  for (int l = 1; l < kLanes; ++l) {
    lane[0] = earlier_flip(lane[0], lane[l]);
  }
  return lane[0];
}

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
    const int64_t *predictions = data_of<int64_t>(p), *own = data_of<int64_t>(l);
    const E* epsilons = data_of<E>(e);
    E* first = mutable_data_of<E>(out);
    torch::stable::parallel_for(0, rays, grain, [&](int64_t begin, int64_t end) {
      for (int64_t ray = begin; ray < end; ++ray) {
        first[ray] = first_flip_of(predictions + ray * count, own[ray], epsilons + ray * epsilons_per_ray, count);
      }
    });
  };
  epsilon.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  return out;
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) { APEM_FAST_KERNEL(m, first_flip); }

}  // namespace apem_fast
