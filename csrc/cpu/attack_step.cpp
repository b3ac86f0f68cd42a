// attack_step on the CPU: one read of each input, one write. Where pixels are to be put back (the proximal zero force),
// a tile's step waits in a buffer until the squares of its channels are summed.

#include "tiles.h"

namespace apem_fast {
namespace {

template <typename T>
struct Step {
  const T* perturbed;
  const T* gradient;
  const T* previous;  // null in the first step
  const T* original;  // null where no pixel is put back
  arithmetic_t<T> step_size, damping, lower, upper, threshold;

  Step at(int64_t offset) const {
    Step moved = *this;
    for (const T** data : {&moved.perturbed, &moved.gradient, &moved.previous, &moved.original}) {
      *data = *data ? *data + offset : nullptr;
    }
    return moved;
  }
};

template <typename T, typename O, typename A>
APEM_FAST_VECTOR_VERSIONS void move(O* out, const T* perturbed, const T* gradient, int64_t count, A step_size, A lower,
                                    A upper) {
  for (int64_t i = 0; i < count; ++i) {
    const A moved = attack_stepped(static_cast<A>(perturbed[i]), step_size, static_cast<A>(gradient[i]), A(0));
    out[i] = static_cast<O>(clamped(moved, lower, upper));
  }
}

template <typename T, typename O, typename A>
APEM_FAST_VECTOR_VERSIONS void move_damped(O* out, const T* perturbed, const T* gradient, const T* previous,
                                           int64_t count, A step_size, A damping, A lower, A upper) {
  for (int64_t i = 0; i < count; ++i) {
    const A damped = damping * static_cast<A>(previous[i]);
    const A moved = attack_stepped(static_cast<A>(perturbed[i]), step_size, static_cast<A>(gradient[i]), damped);
    out[i] = static_cast<O>(clamped(moved, lower, upper));
  }
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void squares(A* square, const A* moved, const T* original, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const A perturbation = moved[i] - static_cast<A>(original[i]);
    square[i] = perturbation * perturbation;
  }
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void add_squares(A* sum, const A* moved, const T* original, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const A perturbation = moved[i] - static_cast<A>(original[i]);
    sum[i] += perturbation * perturbation;
  }
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void put_back(T* out, const A* moved, const T* original, const A* square, int64_t count,
                                        A threshold) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = square[i] <= threshold ? original[i] : static_cast<T>(moved[i]);
  }
}

// The mask is compared as an integer because compilers do not make vectors of a choice by bools.
template <typename T>
APEM_FAST_VECTOR_VERSIONS void keep_outside(T* out, const T* perturbed, const uint8_t* region, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const T kept = perturbed[i], moved = out[i];
    const int32_t inside = region[i];
    out[i] = inside != 0 ? moved : kept;
  }
}

template <typename T, typename O>
void move_run(O* out, const Step<T>& step, int64_t at, int64_t count) {
  if (step.previous) {
    move_damped(out, step.perturbed + at, step.gradient + at, step.previous + at, count, step.step_size, step.damping,
                step.lower, step.upper);
  } else {
    move(out, step.perturbed + at, step.gradient + at, count, step.step_size, step.lower, step.upper);
  }
}

// Pixels [begin, begin + count) of one image whose channels are planes.
template <typename T, typename A = arithmetic_t<T>>
void step_planes(T* out, const Step<T>& step, const uint8_t* region, bool region_has_channels, int64_t begin,
                 int64_t count, int64_t channels, int64_t pixels, A* moved, A* sum) {
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t at = c * pixels + begin;
    if (!step.original) {
      move_run(out + at, step, at, count);
      continue;
    }
    move_run(moved + c * count, step, at, count);
    if (c == 0) {
      squares(sum, moved, step.original + at, count);
    } else {
      add_squares(sum, moved + c * count, step.original + at, count);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t at = c * pixels + begin;
    if (step.original) {
      put_back(out + at, moved + c * count, step.original + at, sum, count, step.threshold);
    }
    if (region) {
      keep_outside(out + at, step.perturbed + at, region + (region_has_channels ? c * pixels : 0) + begin, count);
    }
  }
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS void sum_of_pixels(A* sum, const A* square, int64_t pixels, int64_t channels) {
  if (channels == 3) {
    for (int64_t p = 0; p < pixels; ++p) {
      sum[p] = square[3 * p] + square[3 * p + 1] + square[3 * p + 2];
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    A total = square[p * channels];
    for (int64_t c = 1; c < channels; ++c) {
      total += square[p * channels + c];
    }
    sum[p] = total;
  }
}

// The same where the channels are last: what belongs to a pixel is repeated for each of them.
template <typename T, typename A = arithmetic_t<T>>
void step_pixels(T* out, const Step<T>& step, const uint8_t* region, bool region_has_channels, int64_t begin,
                 int64_t count, int64_t channels, A* moved, A* sum, A* square, uint8_t* inside) {
  const int64_t at = begin * channels, values = count * channels;
  if (step.original) {
    move_run(moved, step, at, values);
    squares(square, moved, step.original + at, values);
    sum_of_pixels(sum, square, count, channels);
    repeat_per_channel(square, sum, count, channels);
    put_back(out + at, moved, step.original + at, square, values, step.threshold);
  } else {
    move_run(out + at, step, at, values);
  }
  if (region && region_has_channels) {
    keep_outside(out + at, step.perturbed + at, region + at, values);
  } else if (region) {
    repeat_per_channel(inside, region + begin, count, channels);
    keep_outside(out + at, step.perturbed + at, inside, values);
  }
}

Tensor attack_step(const Tensor& perturbed, const Tensor& gradient, const std::optional<Tensor>& previous,
                   const std::optional<Tensor>& region, double step_size, double damping, std::optional<double> lower,
                   std::optional<double> upper, const std::optional<Tensor>& original, double zero) {
  const checks::Bounds bounds =
      checks::attack_step(perturbed, gradient, previous, region, lower, upper, original, zero);
  const MemoryFormat format = image_format(perturbed);
  const int64_t n = perturbed.size(0), channels = perturbed.size(1), pixels = perturbed.size(2) * perturbed.size(3);
  Tensor out =
      empty_output(perturbed, {n, channels, perturbed.size(2), perturbed.size(3)}, perturbed.scalar_type(), format);
  if (out.numel() == 0) {
    return out;
  }
  const auto like_images = [&](const std::optional<Tensor>& tensor) {
    return tensor ? std::optional<Tensor>(torch::stable::contiguous(*tensor, format)) : std::nullopt;
  };
  const Tensor x = torch::stable::contiguous(perturbed, format);  // [N, C, H, W], as the four below
  const Tensor g = torch::stable::contiguous(gradient, format);
  const std::optional<Tensor> before = like_images(previous);
  const std::optional<Tensor> start = zero > 0 ? like_images(original) : std::nullopt;
  const std::optional<Tensor> mask = like_images(region);  // [N or 1, 1 or C, H, W]
  const bool mask_has_channels = mask && mask->size(1) == channels;
  // Where no step looks across channels, an image is one channel; where it looks at no image either, all are one image.
  const bool apart = !start && (!mask || mask_has_channels), flat = apart && !mask;
  const int64_t images = flat ? 1 : n, rows = apart ? 1 : channels;
  const int64_t size = flat ? n * channels * pixels : channels * pixels, row = size / rows;
  const int64_t mask_size = mask && mask->size(0) > 1 ? mask->numel() / n : 0;
  const int64_t tile = std::min(row, std::max<int64_t>(kTileStep, kTileValues / rows));
  const int64_t tiles = (row + tile - 1) / tile;
  const bool interleaved = rows > 1 && format == MemoryFormat::ChannelsLast;

  dispatch_floating(perturbed.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const Step<T> step{
        data_of<T>(x),
        data_of<T>(g),
        before ? data_of<T>(*before) : nullptr,
        start ? data_of<T>(*start) : nullptr,
        static_cast<A>(step_size),
        static_cast<A>(damping),
        static_cast<A>(bounds.lower),
        static_cast<A>(bounds.upper),
        static_cast<A>(2 * step_size * zero),
    };
    const uint8_t* region_data = mask ? data_of<uint8_t>(*mask) : nullptr;
    T* to = mutable_data_of<T>(out);
    const int64_t grain = std::max<int64_t>(1, kGrainValues / (tile * rows));
    torch::stable::parallel_for(0, images * tiles, grain, [&](int64_t first, int64_t last) {
      AlignedBuffer<A> buffer(start ? 2 * tile * rows + tile : 0);
      A *moved = buffer.data(), *sum = moved + tile * rows, *square = sum + tile;
      AlignedBuffer<uint8_t> inside(interleaved && mask ? tile * rows : 0);
      for (int64_t i = first; i < last; ++i) {
        const int64_t image = i / tiles, begin = i % tiles * tile, count = std::min(tile, row - begin);
        const Step<T> own = step.at(image * size);
        const uint8_t* kept = mask ? region_data + image * mask_size : nullptr;
        if (interleaved) {
          step_pixels(to + image * size, own, kept, mask_has_channels, begin, count, rows, moved, sum, square,
                      inside.data());
        } else {
          step_planes(to + image * size, own, kept, mask_has_channels, begin, count, rows, row, moved, sum);
        }
      }
    });
  });
  return out;
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) { APEM_FAST_KERNEL(m, attack_step); }

}  // namespace apem_fast
