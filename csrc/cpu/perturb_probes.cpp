// perturb_probes on the CPU: a probe is cut into tiles of pixels; a tile's quotients R / norm are formed once, in a
// buffer that stays in the nearest cache, and used for every channel.

#include "../checks.h"
#include "../math.h"

#include <torch/csrc/stable/library.h>

namespace apem_fast {
namespace {

constexpr int64_t kTilePixels = 1024;
constexpr int64_t kGrainValues = 16384;  // work below this is not worth a second thread

// What one probe reads; sizes are per image. A map without channels is applied to all of them.
template <typename T, typename G>
struct Probe {
  const T* image;
  const T* map;
  const G* gradient;
  arithmetic_t<T> norm, level, epsilon, lower, upper;
  bool irrelevance;
};

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void fill_quotients(A* quotient, const T* map, int64_t count, A norm, A level,
                                              bool irrelevance) {
  for (int64_t i = 0; i < count; ++i) {
    quotient[i] = probe_relevance(static_cast<A>(map[i]), level, irrelevance) / norm;
  }
}

template <typename A>
void repeat_per_channel(A* repeated, const A* quotient, int64_t pixels, int64_t channels) {
  if (channels == 3) {
    for (int64_t p = 0; p < pixels; ++p) {
      repeated[3 * p] = repeated[3 * p + 1] = repeated[3 * p + 2] = quotient[p];
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      repeated[p * channels + c] = quotient[p];
    }
  }
}

template <typename T, typename G, typename O, typename A>
APEM_FAST_VECTOR_VERSIONS void apply(O* out, const T* image, const G* gradient, const A* quotient, int64_t count,
                                     A epsilon, A lower, A upper) {
  for (int64_t i = 0; i < count; ++i) {
    const A direction = quotient[i] * sign_of<A>(gradient[i]);
    out[i] = static_cast<O>(clamped(perturbed(static_cast<A>(image[i]), epsilon, direction), lower, upper));
  }
}

// Pixels [begin, end) of one probe, all channels.
template <typename T, typename G, typename O>
void write_pixels(O* out, const Probe<T, G>& probe, int64_t begin, int64_t end, int64_t channels, int64_t pixels,
                  bool map_has_channels, bool channels_last, arithmetic_t<T>* quotient, arithmetic_t<T>* repeated) {
  using A = arithmetic_t<T>;
  const int64_t count = end - begin;
  const auto run = [&](int64_t at, int64_t length, const A* values) {
    apply(out + at, probe.image + at, probe.gradient + at, values, length, probe.epsilon, probe.lower, probe.upper);
  };
  const auto quotients_from = [&](A* to, int64_t at, int64_t length) {
    fill_quotients(to, probe.map + at, length, probe.norm, probe.level, probe.irrelevance);
  };
  if (channels_last) {
    if (map_has_channels) {
      quotients_from(repeated, begin * channels, count * channels);
    } else {
      quotients_from(quotient, begin, count);
      repeat_per_channel(repeated, quotient, count, channels);
    }
    run(begin * channels, count * channels, repeated);
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    if (c == 0 || map_has_channels) {
      quotients_from(quotient, (map_has_channels ? c * pixels : 0) + begin, count);
    }
    run(c * pixels + begin, count, quotient);
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
  const int64_t probes = norm.size(0), channels = images.size(1), pixels = images.size(2) * images.size(3);
  const ScalarType out_dtype = dtype.value_or(images.scalar_type());
  Tensor out = empty_image(images, {probes, channels, images.size(2), images.size(3)}, out_dtype, format);
  if (out.numel() == 0) {
    return out;
  }
  const Tensor x = torch::stable::contiguous(images, format);        // [N, C, H, W]
  const Tensor r = torch::stable::contiguous(relevance, format);     // [maps, 1 or C, H, W]
  const Tensor g = torch::stable::contiguous(gradient, format);      // [N, C, H, W]
  const Tensor norms = torch::stable::contiguous(norm);              // [M], as the five below
  const Tensor rows = torch::stable::contiguous(probe_image);
  const Tensor maps = torch::stable::contiguous(probe_map);
  const Tensor inverted = torch::stable::contiguous(probe_irrelevance);
  const Tensor epsilons = torch::stable::contiguous(probe_epsilon);
  const Tensor levels = torch::stable::contiguous(probe_level);
  const int64_t image_size = channels * pixels, map_size = r.size(1) * pixels;
  const bool map_has_channels = r.size(1) == channels;
  const bool channels_last = format == MemoryFormat::ChannelsLast;
  const int64_t tile = std::max<int64_t>(1, channels_last ? kTilePixels * 3 / std::max<int64_t>(channels, 3) : kTilePixels);
  const int64_t tiles = (pixels + tile - 1) / tile;

  dispatch_floating(images.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    dispatch_gradient<T>(gradient.scalar_type(), [&](auto gradient_value) {
      using G = decltype(gradient_value);
      const auto run = [&](auto out_value) {
        using O = decltype(out_value);
        torch::stable::parallel_for(0, probes * tiles, std::max<int64_t>(1, kGrainValues / (tile * channels)),
                                    [&](int64_t begin, int64_t end) {
          std::vector<A> buffer(tile * (1 + channels));
          for (int64_t i = begin; i < end; ++i) {
            const int64_t m = i / tiles, first = i % tiles * tile;
            const int64_t row = data_of<int64_t>(rows)[m];
            const Probe<T, G> probe{
                data_of<T>(x) + row * image_size,
                data_of<T>(r) + data_of<int64_t>(maps)[m] * map_size,
                data_of<G>(g) + row * image_size,
                static_cast<A>(data_of<double>(norms)[m]),
                static_cast<A>(data_of<double>(levels)[m]),
                static_cast<A>(data_of<double>(epsilons)[m]),
                static_cast<A>(bounds.lower),
                static_cast<A>(bounds.upper),
                data_of<bool>(inverted)[m],
            };
            write_pixels(mutable_data_of<O>(out) + m * image_size, probe, first, std::min(first + tile, pixels),
                         channels, pixels, map_has_channels, channels_last, buffer.data(), buffer.data() + tile);
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
