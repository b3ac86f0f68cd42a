// perturb_probes on the CPU. Tiles are the outer loop and probes the inner one, so that an image's tile is still in the
// cache for its next probe; the quotients R / norm are kept for as long as consecutive probes use the same.

#include "tiles.h"

namespace apem_fast {
namespace {

template <bool kBounded, typename T, typename G, typename O, typename A>
APEM_FAST_VECTOR_VERSIONS void write_probe(O* out, const T* image, const G* gradient, const A* quotient, int64_t count,
                                           A epsilon, A lower, A upper) {
  for (int64_t i = 0; i < count; ++i) {
    const A direction = quotient[i] * sign_of<A>(gradient[i]);
    const A value = perturbed(static_cast<A>(image[i]), epsilon, direction);
    out[i] = static_cast<O>(kBounded ? clamped(value, lower, upper) : value);
  }
}

// One of the (M,) arguments, read often.
template <typename V>
class PerProbe {
 public:
  explicit PerProbe(const Tensor& tensor) : tensor_(torch::stable::contiguous(tensor)), data_(data_of<V>(tensor_)) {}
  V operator[](int64_t m) const { return data_[m]; }

 private:
  const Tensor tensor_;
  const V* data_;
};

void write_probes(const Tensor& out, const Tensor& images, const Tensor& relevance, const Tensor& gradient,
                  const Tensor& norm, const Tensor& probe_image, const Tensor& probe_map,
                  const Tensor& probe_irrelevance, const Tensor& probe_epsilon, const Tensor& probe_level,
                  const checks::Bounds& bounds, bool bounded) {
  if (out.numel() == 0) {
    return;
  }
  const MemoryFormat format = image_format(out);
  const int64_t probes = norm.size(0);
  const Tensor x = torch::stable::contiguous(images, format);     // [N, C, H, W]
  const Tensor r = torch::stable::contiguous(relevance, format);  // [maps, 1 or C, H, W]
  const Tensor g = torch::stable::contiguous(gradient, format);   // [N, C, H, W]
  const PerProbe<double> norms(norm), epsilons(probe_epsilon), levels(probe_level);
  const PerProbe<int64_t> rows(probe_image), maps(probe_map);
  const PerProbe<bool> inverted(probe_irrelevance);
  const TiledImage t = tiled_image(x, r, format);

  const auto same_quotients = [&](int64_t a, int64_t b) {
    return maps[a] == maps[b] && norms[a] == norms[b] && levels[a] == levels[b] && inverted[a] == inverted[b];
  };
  dispatch_floating(images.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const T *image = data_of<T>(x), *map = data_of<T>(r);
    dispatch_gradient<T>(gradient.scalar_type(), [&](auto gradient_value) {
      using G = decltype(gradient_value);
      const G* sign = data_of<G>(g);
      const auto run = [&](auto out_value) {
        using O = decltype(out_value);
        O* to = mutable_data_of<O>(out);
        const auto write = bounded ? write_probe<true, T, G, O, A> : write_probe<false, T, G, O, A>;
        torch::stable::parallel_for(0, t.tiles * probes, tile_grain(t), [&](int64_t begin, int64_t end) {
          TileBuffer<A> quotients(t);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t tile = i / probes, m = i % probes;
            if (i == begin || m == 0 || !same_quotients(m - 1, m)) {
              quotients.fill(tile, [&](A* quotient, int64_t at, int64_t count) {
                fill_quotients(quotient, map + maps[m] * t.map_size + at, count, static_cast<A>(norms[m]),
                               static_cast<A>(levels[m]), inverted[m]);
              });
            }
            const int64_t row = rows[m] * t.size;
            quotients.for_each_run(tile, [&](int64_t at, int64_t count, const A* quotient) {
              write(to + m * t.size + at, image + row + at, sign + row + at, quotient, count,
                    static_cast<A>(epsilons[m]), static_cast<A>(bounds.lower), static_cast<A>(bounds.upper));
            });
          }
        });
      };
      if (out.scalar_type() == images.scalar_type()) {
        run(T{});
      } else if (out.scalar_type() == ScalarType::Half) {
        run(Half{});
      } else {
        run(BFloat16{});
      }
    });
  });
}

Tensor perturb_probes(const Tensor& images, const Tensor& relevance, const Tensor& gradient, const Tensor& norm,
                      const Tensor& probe_image, const Tensor& probe_map, const Tensor& probe_irrelevance,
                      const Tensor& probe_epsilon, const Tensor& probe_level, std::optional<double> lower,
                      std::optional<double> upper, std::optional<ScalarType> dtype) {
  const checks::Bounds bounds =
      checks::perturb_probes(images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance,
                             probe_epsilon, probe_level, lower, upper, dtype);
  Tensor out = empty_output(images, {norm.size(0), images.size(1), images.size(2), images.size(3)},
                            dtype.value_or(images.scalar_type()), image_format(images));
  write_probes(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance, probe_epsilon,
               probe_level, bounds, lower || upper);
  return out;
}

void perturb_probes_into(const Tensor& out, const Tensor& images, const Tensor& relevance, const Tensor& gradient,
                         const Tensor& norm, const Tensor& probe_image, const Tensor& probe_map,
                         const Tensor& probe_irrelevance, const Tensor& probe_epsilon, const Tensor& probe_level,
                         std::optional<double> lower, std::optional<double> upper) {
  const checks::Bounds bounds =
      checks::perturb_probes_into(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance,
                                  probe_epsilon, probe_level, lower, upper);
  checks::perturb_probes_apart(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance,
                               probe_epsilon, probe_level);
  count_as_written(out);
  write_probes(out, images, relevance, gradient, norm, probe_image, probe_map, probe_irrelevance, probe_epsilon,
               probe_level, bounds, lower || upper);
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) {
  APEM_FAST_KERNEL(m, perturb_probes);
  APEM_FAST_KERNEL(m, perturb_probes_into);
}

}  // namespace apem_fast
