// Binds perturb_kernel.cuh to torch.

#include "binding.h"
#include "perturb_kernel.cuh"

#include <tuple>

namespace apem_fast {
namespace {

// (K,) or (N, K) as the kernels read it: in the images' dtype or, from any other, in float64.
struct Epsilons {
  Tensor values;
  int64_t K, stride;

  Epsilons(const Tensor& epsilon, const Tensor& images)
      : values(torch::stable::contiguous(
            epsilon.scalar_type() == images.scalar_type() ? epsilon : torch::stable::to(epsilon, ScalarType::Double))),
        K(epsilon.size(epsilon.dim() - 1)),
        stride(epsilon.dim() == 2 ? K : 0) {}

  // Calls f with a value of the epsilons' C++ type; T is the images'.
  template <typename T, typename F>
  void dispatch(const F& f) const {
    values.scalar_type() == ScalarType::Double ? f(double{}) : f(T{});
  }
};

Tensor perturb(const Tensor& images, const Tensor& direction, const Tensor& epsilon, std::optional<double> lower,
               std::optional<double> upper) {
  const checks::Bounds bounds = checks::perturb(images, direction, epsilon, lower, upper);
  const OnDeviceOf device(images);
  const MemoryFormat format = image_format(images);
  const int64_t n = images.size(0), k = epsilon.size(epsilon.dim() - 1);
  const int64_t c = images.size(1), h = images.size(2), w = images.size(3);
  Tensor out = empty_image(images, {n * k, c, h, w}, images.scalar_type(), format);
  const Tensor result = torch::stable::view(out, {n, k, c, h, w});
  if (out.numel() == 0) {
    return result;
  }
  const Tensor x = torch::stable::contiguous(images, format);     // [N, C, H, W]
  const Tensor d = torch::stable::contiguous(direction, format);  // [N, C, H, W]
  const Epsilons epsilons(epsilon, images);

  dispatch_floating(images.scalar_type(), [&](auto value) {
    using T = decltype(value);
    epsilons.dispatch<T>([&](auto epsilon_value) {
      using E = decltype(epsilon_value);
      launch_perturb APEM_FAST_BLOCK(
          PerturbArguments<T, E>{data_of<T>(x), data_of<T>(d), data_of<E>(epsilons.values), mutable_data_of<T>(out), n,
                                 k, c * h * w, epsilons.stride, bounds.lower, bounds.upper},
          device.stream);
    });
  });
  device.check_launches();
  return result;
}

std::tuple<Tensor, Tensor> perturb_backward(const Tensor& grad_perturbed, const Tensor& images, const Tensor& direction,
                                            const Tensor& epsilon, std::optional<double> lower,
                                            std::optional<double> upper) {
  const checks::Bounds bounds = checks::perturb_backward(grad_perturbed, images, direction, epsilon, lower, upper);
  const OnDeviceOf device(images);
  const MemoryFormat format = image_format(images);
  const int64_t n = images.size(0), k = epsilon.size(epsilon.dim() - 1);
  const int64_t c = images.size(1), h = images.size(2), w = images.size(3);
  Tensor grad_images = empty_image(images, {n, c, h, w}, images.scalar_type(), format);
  Tensor grad_direction = empty_image(images, {n, c, h, w}, images.scalar_type(), format);
  if (images.numel() == 0) {
    return {grad_images, grad_direction};
  }
  const Tensor grad = torch::stable::contiguous(torch::stable::reshape(grad_perturbed, {n * k, c, h, w}), format);
  const Tensor x = torch::stable::contiguous(images, format);     // [N, C, H, W]
  const Tensor d = torch::stable::contiguous(direction, format);  // [N, C, H, W]
  const Epsilons epsilons(epsilon, images);

  dispatch_floating(images.scalar_type(), [&](auto value) {
    using T = decltype(value);
    epsilons.dispatch<T>([&](auto epsilon_value) {
      using E = decltype(epsilon_value);
      launch_perturb_backward APEM_FAST_BLOCK(
          PerturbBackwardArguments<T, E>{data_of<T>(grad), data_of<T>(x), data_of<T>(d),
                                         mutable_data_of<T>(grad_images), mutable_data_of<T>(grad_direction),
                                         data_of<E>(epsilons.values), n, k, c * h * w, epsilons.stride, bounds.lower,
                                         bounds.upper},
          device.stream);
    });
  });
  device.check_launches();
  return {grad_images, grad_direction};
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) {
  APEM_FAST_KERNEL(m, perturb);
  APEM_FAST_KERNEL(m, perturb_backward);
}

}  // namespace apem_fast
