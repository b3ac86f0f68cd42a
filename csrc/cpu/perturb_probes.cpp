// perturb_probes on the CPU. Tiles are the outer loop and probes the inner one, so that an image's tile is still in the
// cache for its next probe; the quotients R / norm are kept for as long as consecutive probes lie on one ray.

#include "tiles.h"

namespace apem_fast {
namespace {

template <typename T, typename G, typename O, typename A>
APEM_FAST_VECTOR_VERSIONS void write_probe(O* out, const T* image, const G* gradient, const A* quotient, int64_t count,
                                           A epsilon, A lower, A upper) {
  for (int64_t i = 0; i < count; ++i) {
    const A direction = quotient[i] * sign_of<A>(gradient[i]);
    out[i] = static_cast<O>(clamped(perturbed(static_cast<A>(image[i]), epsilon, direction), lower, upper));
  }
}

Tensor perturb_probes(const Tensor& images, const Tensor& relevance, const Tensor& gradient, const Tensor& norm,
                      const Tensor& probe_image, const Tensor& probe_map, const Tensor& probe_irrelevance,
                      const Tensor& probe_epsilon, const Tensor& probe_level, std::optional<double> lower,
                      std::optional<double> upper, std::optional<ScalarType> dtype) {
  const checks::Bounds bounds = checks::perturb_probes(images, relevance, gradient, norm, probe_image, probe_map,
                                                       probe_irrelevance, probe_epsilon, probe_level, lower, upper,
                                                       dtype);
  const MemoryFormat format = image_format(images);
  const int64_t probes = norm.size(0);
  const ScalarType out_dtype = dtype.value_or(images.scalar_type());
  Tensor out = empty_image(images, {probes, images.size(1), images.size(2), images.size(3)}, out_dtype, format);
  if (out.numel() == 0) {
    return out;
  }
  const Tensor x = torch::stable::contiguous(images, format);     // [N, C, H, W]
  const Tensor r = torch::stable::contiguous(relevance, format);  // [maps, 1 or C, H, W]
  const Tensor g = torch::stable::contiguous(gradient, format);   // [N, C, H, W]
  const Tensor norms = torch::stable::contiguous(norm);           // [M], as the five below
  const Tensor rows = torch::stable::contiguous(probe_image);
  const Tensor maps = torch::stable::contiguous(probe_map);
  const Tensor inverted = torch::stable::contiguous(probe_irrelevance);
  const Tensor epsilons = torch::stable::contiguous(probe_epsilon);
  const Tensor levels = torch::stable::contiguous(probe_level);
  const TiledImage t = tiled_image(x, r, format);

  const auto on_one_ray = [&](int64_t a, int64_t b) {
    return data_of<int64_t>(maps)[a] == data_of<int64_t>(maps)[b] &&
           data_of<double>(norms)[a] == data_of<double>(norms)[b] &&
           data_of<double>(levels)[a] == data_of<double>(levels)[b] &&
           data_of<bool>(inverted)[a] == data_of<bool>(inverted)[b];
  };
  dispatch_floating(images.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    dispatch_gradient<T>(gradient.scalar_type(), [&](auto gradient_value) {
      using G = decltype(gradient_value);
      const auto run = [&](auto out_value) {
        using O = decltype(out_value);
        torch::stable::parallel_for(0, t.tiles * probes, tile_grain(t), [&](int64_t begin, int64_t end) {
          TileBuffer<A> buffer(t);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t tile = i / probes, m = i % probes;
            if (i == begin || m == 0 || !on_one_ray(m - 1, m)) {
              const T* map = data_of<T>(r) + data_of<int64_t>(maps)[m] * t.map_size;
              buffer.fill(tile, [&](A* to, int64_t at, int64_t count) {
                fill_quotients(to, map + at, count, static_cast<A>(data_of<double>(norms)[m]),
                               static_cast<A>(data_of<double>(levels)[m]), data_of<bool>(inverted)[m]);
              });
            }
            const int64_t row = data_of<int64_t>(rows)[m] * t.size;
            buffer.for_each_run(tile, [&](int64_t at, int64_t count, const A* quotient) {
              write_probe(mutable_data_of<O>(out) + m * t.size + at, data_of<T>(x) + row + at,
                          data_of<G>(g) + row + at, quotient, count, static_cast<A>(data_of<double>(epsilons)[m]),
                          static_cast<A>(bounds.lower), static_cast<A>(bounds.upper));
            });
          }
        });
      };
      if (out_dtype == images.scalar_type()) {
        run(T{});
      } else if (out_dtype == ScalarType::Half) {
        run(Half{});
      } else {
        run(BFloat16{});
      }
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(apem_fast, CPU, m) { m.impl("perturb_probes", TORCH_BOX(&perturb_probes)); }

}  // namespace apem_fast
