// perturb on the CPU: each tile of an image and its direction is read once and written at all K epsilons.

#include "tiles.h"

namespace apem_fast {
namespace {

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void write_perturbed(T* out, const T* image, const T* direction, int64_t count, A epsilon,
                                               A lower, A upper) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<T>(
        clamped(perturbed(static_cast<A>(image[i]), epsilon, static_cast<A>(direction[i])), lower, upper));
  }
}

// Epsilons of every image in arithmetic precision: [N, K].
template <typename A>
std::vector<A> epsilons_of(const Tensor& epsilon, int64_t images) {
  const Tensor values = torch::stable::contiguous(epsilon);
  const int64_t count = epsilon.size(epsilon.dim() - 1);
  std::vector<A> result(images * count);
  dispatch_floating(epsilon.scalar_type(), [&](auto value) {
    const auto* data = data_of<decltype(value)>(values);
    for (int64_t i = 0; i < images * count; ++i) {
      result[i] = static_cast<A>(data[epsilon.dim() == 2 ? i : i % count]);
    }
  });
  return result;
}

Tensor perturb(const Tensor& images, const Tensor& direction, const Tensor& epsilon, std::optional<double> lower,
               std::optional<double> upper) {
  const checks::Bounds bounds = checks::perturb(images, direction, epsilon, lower, upper);
  const MemoryFormat format = image_format(images);
  const int64_t n = images.size(0), k = epsilon.size(epsilon.dim() - 1);
  const int64_t c = images.size(1), h = images.size(2), w = images.size(3), size = c * h * w;
  Tensor out = empty_output(images, {n * k, c, h, w}, images.scalar_type(), format);
  const Tensor result = torch::stable::view(out, {n, k, c, h, w});
  if (out.numel() == 0) {
    return result;
  }
  const Tensor x = torch::stable::contiguous(images, format);     // [N, C, H, W]
  const Tensor d = torch::stable::contiguous(direction, format);  // [N, C, H, W]
  const int64_t tiles = (size + kTileValues - 1) / kTileValues;

  dispatch_floating(images.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const std::vector<A> epsilons = epsilons_of<A>(epsilon, n);
    const T *from = data_of<T>(x), *directions = data_of<T>(d);
    T* to = mutable_data_of<T>(out);
    const int64_t grain = std::max<int64_t>(1, kGrainValues / (std::min(kTileValues, size) * k));
    torch::stable::parallel_for(0, n * tiles, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / tiles, first = i % tiles * kTileValues, count = std::min(kTileValues, size - first);
        for (int64_t step = image * k; step < (image + 1) * k; ++step) {
          const int64_t at = image * size + first;
          write_perturbed(to + step * size + first, from + at, directions + at, count, epsilons[step],
                          static_cast<A>(bounds.lower), static_cast<A>(bounds.upper));
        }
      }
    });
  });
  return result;
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void add_gradients(A* grad_image, A* grad_direction, const T* grad, const T* image,
                                             const T* direction, int64_t count, A epsilon, A lower, A upper) {
  for (int64_t i = 0; i < count; ++i) {
    const A value = perturbed(static_cast<A>(image[i]), epsilon, static_cast<A>(direction[i]));
    const A passed = passed_gradient(static_cast<A>(grad[i]), value, lower, upper);
    grad_image[i] += passed;
    grad_direction[i] += epsilon * passed;
  }
}

std::tuple<Tensor, Tensor> perturb_backward(const Tensor& grad_perturbed, const Tensor& images, const Tensor& direction,
                                            const Tensor& epsilon, std::optional<double> lower,
                                            std::optional<double> upper) {
  const checks::Bounds bounds = checks::perturb_backward(grad_perturbed, images, direction, epsilon, lower, upper);
  const MemoryFormat format = image_format(images);
  const int64_t n = images.size(0), k = epsilon.size(epsilon.dim() - 1);
  const int64_t c = images.size(1), h = images.size(2), w = images.size(3), size = c * h * w;
  Tensor grad_images = empty_output(images, {n, c, h, w}, images.scalar_type(), format);
  Tensor grad_direction = empty_output(images, {n, c, h, w}, images.scalar_type(), format);
  if (images.numel() == 0) {
    return {grad_images, grad_direction};
  }
  const Tensor grad = torch::stable::contiguous(torch::stable::reshape(grad_perturbed, {n * k, c, h, w}), format);
  const Tensor x = torch::stable::contiguous(images, format);     // [N, C, H, W]
  const Tensor d = torch::stable::contiguous(direction, format);  // [N, C, H, W]
  const int64_t tiles = (size + kTileValues - 1) / kTileValues;

  dispatch_floating(images.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const std::vector<A> epsilons = epsilons_of<A>(epsilon, n);
    const T *grads = data_of<T>(grad), *from = data_of<T>(x), *directions = data_of<T>(d);
    T *to_images = mutable_data_of<T>(grad_images), *to_direction = mutable_data_of<T>(grad_direction);
    const int64_t grain = std::max<int64_t>(1, kGrainValues / (kTileValues * std::max<int64_t>(k, 1)));
    torch::stable::parallel_for(0, n * tiles, grain, [&](int64_t begin, int64_t end) {
      std::vector<A> sums(2 * kTileValues);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t image = i / tiles, first = i % tiles * kTileValues, count = std::min(kTileValues, size - first);
        const int64_t at = image * size + first;
        std::fill(sums.begin(), sums.end(), A(0));
        for (int64_t step = image * k; step < (image + 1) * k; ++step) {
          add_gradients(sums.data(), sums.data() + kTileValues, grads + step * size + first, from + at, directions + at,
                        count, epsilons[step], static_cast<A>(bounds.lower), static_cast<A>(bounds.upper));
        }
        for (int64_t j = 0; j < count; ++j) {
          to_images[at + j] = static_cast<T>(sums[j]);
          to_direction[at + j] = static_cast<T>(sums[kTileValues + j]);
        }
      }
    });
  });
  return {grad_images, grad_direction};
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) {
  APEM_FAST_KERNEL(m, perturb);
  APEM_FAST_KERNEL(m, perturb_backward);
}

}  // namespace apem_fast
