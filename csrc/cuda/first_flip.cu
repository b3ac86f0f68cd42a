// Binds first_flip_kernel.cuh to torch.

#include "binding.h"
#include "first_flip_kernel.cuh"

namespace apem_fast {
namespace {

Tensor first_flip(const Tensor& predicted, const Tensor& labels, const Tensor& epsilon) {
  checks::first_flip(predicted, labels, epsilon);
  const OnDeviceOf device(predicted);
  const int64_t rays = predicted.size(0), count = predicted.size(1);
  Tensor out = torch::stable::new_empty(epsilon, {rays});
  const Tensor p = torch::stable::contiguous(predicted);  // [R, K]
  const Tensor l = torch::stable::contiguous(labels);     // [R]
  const Tensor e = torch::stable::contiguous(epsilon);    // [K] or [R, K]

  const auto run = [&](auto value) {
    using E = decltype(value);
    launch_first_flip APEM_FAST_BLOCK(
        FirstFlipArguments<E>{data_of<int64_t>(p), data_of<int64_t>(l), data_of<E>(e), mutable_data_of<E>(out), rays,
                              count, epsilon.dim() == 2 ? count : 0},
        device.stream);
  };
  epsilon.scalar_type() == ScalarType::Double ? run(double{}) : run(float{});
  device.check_launches();
  return out;
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) { APEM_FAST_KERNEL(m, first_flip); }

}  // namespace apem_fast
