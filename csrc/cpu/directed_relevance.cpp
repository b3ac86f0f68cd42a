// directed_relevance on the CPU: one pass for the l1 norms, one that writes the directions.

#include "sums.h"

namespace apem_fast {
namespace {

template <typename T, typename G, typename A>
APEM_FAST_VECTOR_VERSIONS void write_directions(T* direction, const A* quotient, const G* gradient, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    direction[i] = static_cast<T>(quotient[i] * sign_of<A>(gradient[i]));
  }
}

Tensor directed_relevance(const Tensor& relevance, const Tensor& gradient, bool irrelevance) {
  checks::directed_relevance(relevance, gradient);
  const MemoryFormat format = image_format(gradient);
  const int64_t images = gradient.size(0);
  Tensor out = empty_output(relevance, {images, gradient.size(1), gradient.size(2), gradient.size(3)},
                            relevance.scalar_type(), format);
  if (out.numel() == 0) {
    return out;
  }
  const Tensor r = torch::stable::contiguous(relevance, format);  // [N, 1 or C, H, W]
  const Tensor g = torch::stable::contiguous(gradient, format);   // [N, C, H, W]
  const TiledImage t = tiled_image(g, r, format);

  dispatch_floating(relevance.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const T* maps = data_of<T>(r);
    T* directions = mutable_data_of<T>(out);
    const std::vector<A> norms = perturbation_norms(maps, images, t, irrelevance);
    dispatch_gradient<T>(gradient.scalar_type(), [&](auto gradient_value) {
      using G = decltype(gradient_value);
      const G* signs = data_of<G>(g);
      torch::stable::parallel_for(0, images * t.tiles, tile_grain(t), [&](int64_t begin, int64_t end) {
        TileBuffer<A> buffer(t);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / t.tiles, tile = i % t.tiles;
          buffer.fill(tile, [&](A* to, int64_t at, int64_t count) {
            fill_quotients(to, maps + n * t.map_size + at, count, norms[n], kNoLevel<A>, irrelevance);
          });
          buffer.for_each_run(tile, [&](int64_t at, int64_t count, const A* quotient) {
            write_directions(directions + n * t.size + at, quotient, signs + n * t.size + at, count);
          });
        }
      });
    });
  });
  return out;
}

// sum(g d) over consecutive values of one image; values_per_map values share each map value.
template <typename T, typename G, typename A>
double along_direction(const T* grad, const G* gradient, const T* map, const TiledImage& t, int64_t begin, int64_t end,
                       A norm, bool irrelevance) {
  double lane[kLanes] = {};
  for (int64_t i = begin; i < end; ++i) {
    const int64_t at = t.map_has_channels ? i : t.channels_last ? i / t.channels : i % t.pixels;
    const A quotient = applied_relevance(static_cast<A>(map[at]), irrelevance) / norm;
    lane[i % kLanes] += static_cast<double>(static_cast<A>(grad[i]) * sign_of<A>(gradient[i]) * quotient);
  }
  return sum_of_lanes(lane);
}

Tensor directed_relevance_backward(const Tensor& grad_direction, const Tensor& relevance, const Tensor& gradient,
                                   bool irrelevance) {
  checks::directed_relevance_backward(grad_direction, relevance, gradient);
  const MemoryFormat format = image_format(relevance);
  const int64_t images = gradient.size(0);
  Tensor out = empty_output(relevance, {images, relevance.size(1), relevance.size(2), relevance.size(3)},
                            relevance.scalar_type(), format);
  if (gradient.numel() == 0) {
    return torch::stable::zero_(out);
  }
  const Tensor grad = torch::stable::contiguous(grad_direction, format);  // [N, C, H, W]
  const Tensor r = torch::stable::contiguous(relevance, format);          // [N, 1 or C, H, W]
  const Tensor g = torch::stable::contiguous(gradient, format);           // [N, C, H, W]
  const TiledImage t = tiled_image(g, r, format);

  dispatch_floating(relevance.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const T* maps = data_of<T>(r);
    T* grad_relevance = mutable_data_of<T>(out);
    const std::vector<A> norms = perturbation_norms(maps, images, t, irrelevance);
    dispatch_gradient<T>(gradient.scalar_type(), [&](auto gradient_value) {
      using G = decltype(gradient_value);
      const T* grads = data_of<T>(grad);
      const G* signs = data_of<G>(g);
      const std::vector<double> along = sums_of_rows(images, t.size, [&](int64_t n, int64_t begin, int64_t end) {
        return along_direction(grads + n * t.size, signs + n * t.size, maps + n * t.map_size, t, begin, end, norms[n],
                               irrelevance);
      });
      const int64_t shared = t.map_has_channels ? 1 : t.channels;  // channels that share a map value
      const int64_t step = t.channels_last ? 1 : t.pixels;
      torch::stable::parallel_for(0, images * t.map_size, kGrainValues, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t n = i / t.map_size, at = i % t.map_size;
          const int64_t first = n * t.size + (t.map_has_channels ? at : t.channels_last ? at * t.channels : at);
          A directed_grad = static_cast<A>(grads[first]) * sign_of<A>(signs[first]);
          for (int64_t c = 1; c < shared; ++c) {
            const int64_t j = first + c * step;
            directed_grad += static_cast<A>(grads[j]) * sign_of<A>(signs[j]);
          }
          const A v = applied_relevance(static_cast<A>(maps[i]), irrelevance);
          grad_relevance[i] = static_cast<T>(relevance_gradient(directed_grad, v, static_cast<A>(along[n]),
                                                                static_cast<A>(shared), norms[n], irrelevance));
        }
      });
    });
  });
  return out;
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) {
  APEM_FAST_KERNEL(m, directed_relevance);
  APEM_FAST_KERNEL(m, directed_relevance_backward);
}

}  // namespace apem_fast
