// attack_penalty and its backward on the CPU: one pass over the two images each. An image is cut into bands of rows,
// whose perturbation waits in a buffer with the rows above and below, so that a value is read once for all of its
// neighbours. A band is one run of consecutive values, however short its rows: a mask says which of them have a
// neighbour on the right, as the total variation demands.

#include "sums.h"

#include <cmath>

namespace apem_fast {
namespace {

// An image as `segments` of rows: one for each channel, or one for all of them where the channels are last. The
// neighbour on the right is `shift` values further, the one below `length`.
struct Rows {
  int64_t channels, height, width, segments, length, shift, band;

  Rows(const Tensor& images, MemoryFormat format)
      : channels(images.size(1)), height(images.size(2)), width(images.size(3)) {
    const bool channels_last = format == MemoryFormat::ChannelsLast;
    segments = channels_last ? 1 : channels;
    length = channels_last ? width * channels : width;
    shift = channels_last ? channels : 1;
    band = std::max<int64_t>(1, std::min(height, kTileValues / std::max<int64_t>(length, 1)));
  }
  int64_t image_size() const { return channels * height * width; }
  int64_t bands() const { return image_size() ? (height + band - 1) / band : 0; }
  int64_t grain() const { return std::max<int64_t>(1, kGrainValues / std::max<int64_t>(band * length * segments, 1)); }
};

// One thread's memory for a band of one segment. The neighbours of the first and of the last value of the band exist,
// though the mask may keep them out of every sum: a row above, a row below, and `shift` values beyond each.
template <typename A>
class Band {
 public:
  explicit Band(const Rows& rows)
      : rows_(rows), values_(with_neighbours(rows)), paired_(rows.shift + rows.band * rows.length) {
    std::fill_n(values_.data(), with_neighbours(rows), A(0));
    std::fill_n(paired_.data(), rows.shift + rows.band * rows.length, A(0));
    for (int64_t i = 0; i < rows.band; ++i) {
      for (int64_t j = 0; j + rows.shift < rows.length; ++j) {
        paired()[i * rows.length + j] = A(1);
      }
    }
  }

  // The perturbation of rows [begin, end), and of those around them that exist. `begin` is then at `values()`.
  template <typename T>
  void read(const T* perturbed, const T* original, int64_t segment, int64_t begin, int64_t end) {
    const int64_t first = std::max<int64_t>(begin - 1, 0), last = std::min(end + 1, rows_.height);
    const int64_t at = segment * rows_.height * rows_.length + first * rows_.length;
    subtract(values() + (first - begin) * rows_.length, perturbed + at, original + at, (last - first) * rows_.length);
  }

  A* values() { return values_.data() + rows_.shift + rows_.length; }
  // 1 for a value with a neighbour on the right, else 0; also 0 just before the band.
  A* paired() { return paired_.data() + rows_.shift; }

 private:
  static int64_t with_neighbours(const Rows& rows) { return (rows.band + 2) * rows.length + 2 * rows.shift; }

  template <typename T>
  APEM_FAST_VECTOR_VERSIONS static void subtract(A* difference, const T* perturbed, const T* original, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      difference[j] = static_cast<A>(perturbed[j]) - static_cast<A>(original[j]);
    }
  }

  const Rows& rows_;
  AlignedBuffer<A> values_, paired_;
};

template <typename A>
APEM_FAST_VECTOR_VERSIONS double sum_of_variation(const A* value, const A* paired, int64_t count, int64_t below,
                                                  int64_t right) {
  double lane[kLanes] = {};
  const A *down = value + below, *along = value + right;
  for (int64_t j = 0; j < count; j += kLanes) {
    A vertical[kLanes], horizontal[kLanes];
    const int64_t lanes = std::min<int64_t>(kLanes, count - j);
    if (lanes < kLanes) {
      std::fill(vertical, vertical + kLanes, A(0));
      std::fill(horizontal, horizontal + kLanes, A(0));
    }
    for (int64_t l = 0; l < lanes; ++l) {
      vertical[l] = paired[j + l] != A(0) ? std::abs(value[j + l] - down[j + l]) : A(0);
      horizontal[l] = paired[j + l] != A(0) ? std::abs(value[j + l] - along[j + l]) : A(0);
    }
    for (int l = 0; l < kLanes; ++l) {
      lane[l] += static_cast<double>(vertical[l]) + static_cast<double>(horizontal[l]);
    }
  }
  return sum_of_lanes(lane);
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS double sum_of_squares(const A* value, int64_t count) {
  double lane[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      lane[l] += static_cast<double>(value[j + l] * value[j + l]);
    }
  }
  for (; j < count; ++j) {
    lane[0] += static_cast<double>(value[j] * value[j]);
  }
  return sum_of_lanes(lane);
}

// Marks the pixels whose value changed in one of the channels: a plane, or all of them side by side.
template <typename A>
APEM_FAST_VECTOR_VERSIONS void mark_changed(int32_t* changed, const A* value, int64_t pixels) {
  for (int64_t p = 0; p < pixels; ++p) {
    changed[p] |= value[p] != A(0) ? 1 : 0;
  }
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS void mark_changed_pixels(int32_t* changed, const A* value, int64_t pixels, int64_t channels) {
  if (channels == 3) {
    for (int64_t p = 0; p < pixels; ++p) {
      changed[p] =
          (value[3 * p] != A(0) ? 1 : 0) | (value[3 * p + 1] != A(0) ? 1 : 0) | (value[3 * p + 2] != A(0) ? 1 : 0);
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      changed[p] |= value[p * channels + c] != A(0) ? 1 : 0;
    }
  }
}

APEM_FAST_VECTOR_VERSIONS int64_t count_marked(const int32_t* changed, int64_t pixels) {
  int32_t count = 0;  // of a band, which is small
  for (int64_t p = 0; p < pixels; ++p) {
    count += changed[p];
  }
  return count;
}

// Rows [begin, end) of one image.
template <typename T, typename A>
PenaltyTerms band_terms(const T* perturbed, const T* original, const Rows& rows, int64_t begin, int64_t end,
                        Band<A>& band, std::vector<int32_t>& changed) {
  const int64_t pixels = (end - begin) * rows.width, count = (end - begin) * rows.length;
  const int64_t above_others = (std::min(end, rows.height - 1) - begin) * rows.length;  // values with one below
  PenaltyTerms terms{0, 0, 0};
  std::fill(changed.begin(), changed.begin() + pixels, 0);
  for (int64_t s = 0; s < rows.segments; ++s) {
    band.read(perturbed, original, s, begin, end);
    terms.squared += sum_of_squares(band.values(), count);
    terms.variation += sum_of_variation(band.values(), band.paired(), above_others, rows.length, rows.shift);
    if (rows.shift == 1) {
      mark_changed(changed.data(), band.values(), pixels);
    } else {
      mark_changed_pixels(changed.data(), band.values(), pixels, rows.channels);
    }
  }
  terms.changed = static_cast<double>(count_marked(changed.data(), pixels));
  return terms;
}

std::tuple<Tensor, Tensor> attack_penalty(const Tensor& perturbed, const Tensor& original, double tv, double zero,
                                          double diff) {
  checks::attack_penalty(perturbed, original);
  const MemoryFormat format = image_format(perturbed);
  const int64_t n = perturbed.size(0);
  Tensor penalty = torch::stable::empty({n}, ScalarType::Double, std::nullopt, perturbed.device());
  Tensor terms = torch::stable::empty({n, 3}, ScalarType::Double, std::nullopt, perturbed.device());
  const Tensor x = torch::stable::contiguous(perturbed, format);  // [N, C, H, W]
  const Tensor o = torch::stable::contiguous(original, format);   // [N, C, H, W]
  const Rows rows(perturbed, format);
  const int64_t bands = rows.bands();
  std::vector<PenaltyTerms> partial(n * bands);  // one for each band, added up in order whatever the threads
  dispatch_floating(perturbed.scalar_type(), [&](auto value) {
    using T = decltype(value);
    const T *from = data_of<T>(x), *start = data_of<T>(o);
    torch::stable::parallel_for(0, n * bands, rows.grain(), [&](int64_t first, int64_t last) {
      Band<arithmetic_t<T>> band(rows);
      std::vector<int32_t> changed(rows.band * rows.width);
      for (int64_t b = first; b < last; ++b) {
        const int64_t at = b / bands * rows.image_size(), begin = b % bands * rows.band;
        partial[b] =
            band_terms(from + at, start + at, rows, begin, std::min(begin + rows.band, rows.height), band, changed);
      }
    });
  });
  double* p = mutable_data_of<double>(penalty);
  double* t = mutable_data_of<double>(terms);
  for (int64_t i = 0; i < n; ++i) {
    PenaltyTerms sum{0, 0, 0};
    for (int64_t b = 0; b < bands; ++b) {
      sum = sum + partial[i * bands + b];
    }
    sum = mean_squared(sum, rows.image_size());
    p[i] = penalty_of(sum, tv, zero, diff);
    t[3 * i] = sum.variation, t[3 * i + 1] = sum.changed, t[3 * i + 2] = sum.squared;
  }
  return {penalty, terms};
}

// Consecutive values that all have a row above them (kAbove) or none, and so below.
template <bool kAbove, bool kBelow, typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void write_gradient(T* out, const A* value, const A* paired, int64_t count, int64_t row,
                                              int64_t shift, A variation, A squared) {
  for (int64_t j = 0; j < count; ++j) {
    const A own = value[j];
    A signs = A(0);
    if constexpr (kBelow) {
      const A forward = sign_of<A>(own - value[j + row]) + sign_of<A>(own - value[j + shift]);
      const A left = sign_of<A>(value[j - shift] - own);
      signs += paired[j] * forward - paired[j - shift] * left;
    }
    if constexpr (kAbove) {
      signs -= paired[j] * sign_of<A>(value[j - row] - own);
    }
    out[j] = static_cast<T>(penalty_gradient(variation, signs, squared, own));
  }
}

// Rows [begin, end) of the gradient of one image.
template <typename T, typename A>
void band_gradient(T* out, const T* perturbed, const T* original, const Rows& rows, int64_t begin, int64_t end,
                   A variation, A squared, Band<A>& band) {
  for (int64_t s = 0; s < rows.segments; ++s) {
    band.read(perturbed, original, s, begin, end);
    T* to = out + s * rows.height * rows.length;
    const auto write = [&](auto above, auto below, int64_t first, int64_t last) {
      const int64_t at = (first - begin) * rows.length;
      if (first < last) {
        write_gradient<above(), below()>(to + first * rows.length, band.values() + at, band.paired() + at,
                                         (last - first) * rows.length, rows.length, rows.shift, variation, squared);
      }
    };
    const std::true_type yes{};
    const std::false_type no{};
    const int64_t bottom = rows.height - 1;  // the last row of the image
    if (bottom == 0) {
      write(no, no, begin, end);
      continue;
    }
    write(no, yes, begin, std::min<int64_t>(end, 1));
    write(yes, yes, std::max<int64_t>(begin, 1), std::min(end, bottom));
    write(yes, no, std::max(begin, bottom), end);
  }
}

Tensor attack_penalty_backward(const Tensor& grad_penalty, const Tensor& perturbed, const Tensor& original, double tv,
                               double zero, double diff) {
  checks::attack_penalty_backward(grad_penalty, perturbed, original);
  const MemoryFormat format = image_format(perturbed);
  const Rows rows(perturbed, format);
  const int64_t n = perturbed.size(0), bands = rows.bands();
  Tensor out = empty_output(perturbed, {n, rows.channels, rows.height, rows.width}, perturbed.scalar_type(), format);
  const Tensor x = torch::stable::contiguous(perturbed, format);  // [N, C, H, W]
  const Tensor o = torch::stable::contiguous(original, format);   // [N, C, H, W]
  const Tensor g = torch::stable::contiguous(grad_penalty);       // [N]
  dispatch_floating(perturbed.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const T *from = data_of<T>(x), *start = data_of<T>(o);
    const double* grad = data_of<double>(g);
    T* to = mutable_data_of<T>(out);
    torch::stable::parallel_for(0, n * bands, rows.grain(), [&](int64_t first, int64_t last) {
      Band<A> band(rows);
      for (int64_t b = first; b < last; ++b) {
        const int64_t i = b / bands, at = i * rows.image_size(), begin = b % bands * rows.band;
        band_gradient(to + at, from + at, start + at, rows, begin, std::min(begin + rows.band, rows.height),
                      variation_weight<A>(grad[i], tv), squared_weight<A>(grad[i], diff, rows.image_size()), band);
      }
    });
  });
  return out;
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) {
  APEM_FAST_KERNEL(m, attack_penalty);
  APEM_FAST_KERNEL(m, attack_penalty_backward);
}

}  // namespace apem_fast
