// attack_penalty and its backward on the CPU: one pass over the two images each. An image is cut into bands of rows; a
// band keeps the perturbation of the rows it is at in a buffer, so that a row is read once for all of its neighbours.

#include "sums.h"

#include <cmath>

namespace apem_fast {
namespace {

constexpr int64_t kBandRows = 32;

// A row of an image as `segments` runs of `length` values: a run for each channel, or one for all of them where the
// channels are last. The neighbour on the right is `shift` values further.
struct Rows {
  int64_t channels, height, width, segments, length, shift;

  Rows(const Tensor& images, MemoryFormat format)
      : channels(images.size(1)), height(images.size(2)), width(images.size(3)) {
    const bool channels_last = format == MemoryFormat::ChannelsLast;
    segments = channels_last ? 1 : channels;
    length = channels_last ? width * channels : width;
    shift = channels_last ? channels : 1;
  }
  int64_t size() const { return segments * length; }  // values of a row
  int64_t offset(int64_t segment, int64_t row) const { return segment * height * width + row * length; }
  int64_t paired() const { return std::max<int64_t>(length - shift, 0); }  // values with a neighbour on the right
};

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void subtract(A* difference, const T* perturbed, const T* original, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    difference[j] = static_cast<A>(perturbed[j]) - static_cast<A>(original[j]);
  }
}

template <typename T, typename A>
void read_row(A* row, const T* perturbed, const T* original, const Rows& rows, int64_t i) {
  for (int64_t s = 0; s < rows.segments; ++s) {
    subtract(row + s * rows.length, perturbed + rows.offset(s, i), original + rows.offset(s, i), rows.length);
  }
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS double sum_of_variation(const A* row, const A* below, int64_t count, int64_t shift) {
  double lane[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      lane[l] += static_cast<double>(std::abs(row[j + l] - below[j + l])) +
                 static_cast<double>(std::abs(row[j + l] - row[j + l + shift]));
    }
  }
  for (; j < count; ++j) {
    lane[0] += static_cast<double>(std::abs(row[j] - below[j])) + static_cast<double>(std::abs(row[j] - row[j + shift]));
  }
  return sum_of_lanes(lane);
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS double sum_of_squares(const A* row, int64_t count) {
  double lane[kLanes] = {};
  int64_t j = 0;
  for (; j + kLanes <= count; j += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) {
      lane[l] += static_cast<double>(row[j + l] * row[j + l]);
    }
  }
  for (; j < count; ++j) {
    lane[0] += static_cast<double>(row[j] * row[j]);
  }
  return sum_of_lanes(lane);
}

// Pixels of a row whose colour changed in any channel. The value (pixel p, channel c) is at p * step + c * stride.
template <typename A>
APEM_FAST_VECTOR_VERSIONS int64_t count_changed(const A* row, int64_t width, int64_t channels, int64_t step,
                                                int64_t stride) {
  int64_t count = 0;
  if (channels == 1) {
    for (int64_t p = 0; p < width; ++p) {
      count += row[p * step] != A(0);
    }
  } else if (channels == 3) {
    for (int64_t p = 0; p < width; ++p) {
      const A* pixel = row + p * step;
      count += (pixel[0] != A(0)) | (pixel[stride] != A(0)) | (pixel[2 * stride] != A(0));
    }
  } else {
    for (int64_t p = 0; p < width; ++p) {
      bool changed = false;
      for (int64_t c = 0; c < channels; ++c) {
        changed |= row[p * step + c * stride] != A(0);
      }
      count += changed;
    }
  }
  return count;
}

// Rows [begin, end) of one image. The variation of the last of them needs one row more, unless the image ends there.
template <typename T>
PenaltyTerms band_terms(const T* perturbed, const T* original, const Rows& rows, int64_t begin, int64_t end,
                 arithmetic_t<T>* buffer) {
  arithmetic_t<T>*row = buffer, *below = buffer + rows.size();
  const bool channels_last = rows.segments == 1 && rows.channels != 1;
  PenaltyTerms terms{0, 0, 0};
  read_row(row, perturbed, original, rows, begin);
  for (int64_t i = begin; i < end; ++i) {
    terms.squared += sum_of_squares(row, rows.size());
    terms.changed += static_cast<double>(count_changed(row, rows.width, rows.channels, channels_last ? rows.channels : 1,
                                                       channels_last ? 1 : rows.width));
    if (i + 1 < rows.height) {
      read_row(below, perturbed, original, rows, i + 1);
      for (int64_t s = 0; s < rows.segments; ++s) {
        terms.variation +=
            sum_of_variation(row + s * rows.length, below + s * rows.length, rows.paired(), rows.shift);
      }
    }
    std::swap(row, below);
  }
  return terms;
}

std::tuple<Tensor, Tensor> attack_penalty(const Tensor& perturbed, const Tensor& original, double tv, double zero,
                                          double diff) {
  checks::attack_penalty(perturbed, original);
  const MemoryFormat format = image_format(perturbed);
  const int64_t n = perturbed.size(0), image_size = n ? perturbed.numel() / n : 0;
  Tensor penalty = torch::stable::empty({n}, ScalarType::Double, std::nullopt, perturbed.device());
  Tensor terms = torch::stable::empty({n, 3}, ScalarType::Double, std::nullopt, perturbed.device());
  const Tensor x = torch::stable::contiguous(perturbed, format);  // [N, C, H, W]
  const Tensor o = torch::stable::contiguous(original, format);   // [N, C, H, W]
  const Rows rows(perturbed, format);
  const int64_t bands = image_size ? (rows.height + kBandRows - 1) / kBandRows : 0;
  std::vector<PenaltyTerms> partial(n * bands);  // one for each band, added up in order whatever the threads
  dispatch_floating(perturbed.scalar_type(), [&](auto value) {
    using T = decltype(value);
    const int64_t grain = std::max<int64_t>(1, kGrainValues / std::max<int64_t>(1, kBandRows * rows.size()));
    torch::stable::parallel_for(0, n * bands, grain, [&](int64_t first, int64_t last) {
      std::vector<arithmetic_t<T>> buffer(2 * rows.size());
      for (int64_t b = first; b < last; ++b) {
        const int64_t at = b / bands * image_size, begin = b % bands * kBandRows;
        partial[b] = band_terms(data_of<T>(x) + at, data_of<T>(o) + at, rows, begin,
                                std::min(begin + kBandRows, rows.height), buffer.data());
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
    sum = mean_squared(sum, image_size);
    p[i] = penalty_of(sum, tv, zero, diff);
    t[3 * i] = sum.variation, t[3 * i + 1] = sum.changed, t[3 * i + 2] = sum.squared;
  }
  return {penalty, terms};
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS void add_signs_below(A* signs, const A* row, const A* below, int64_t count, int64_t shift) {
  for (int64_t j = 0; j < count; ++j) {
    signs[j] += sign_of<A>(row[j] - below[j]) + sign_of<A>(row[j] - row[j + shift]);
  }
  for (int64_t j = 0; j < count; ++j) {
    signs[j + shift] -= sign_of<A>(row[j] - row[j + shift]);
  }
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS void subtract_signs_above(A* signs, const A* above, const A* row, int64_t count) {
  for (int64_t j = 0; j < count; ++j) {
    signs[j] -= sign_of<A>(above[j] - row[j]);
  }
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void write_gradient(T* out, const A* signs, const A* row, int64_t count, A variation,
                                              A squared) {
  for (int64_t j = 0; j < count; ++j) {
    out[j] = static_cast<T>(penalty_gradient(variation, signs[j], squared, row[j]));
  }
}

// Rows [begin, end) of the gradient of one image; reads a row more on either side.
template <typename T, typename A = arithmetic_t<T>>
void band_gradient(T* out, const T* perturbed, const T* original, const Rows& rows, int64_t begin, int64_t end,
                   A variation, A squared, A* buffer) {
  A *above = buffer, *row = above + rows.size(), *below = row + rows.size(), *signs = below + rows.size();
  if (begin > 0) {
    read_row(above, perturbed, original, rows, begin - 1);
  }
  read_row(row, perturbed, original, rows, begin);
  for (int64_t i = begin; i < end; ++i) {
    const bool has_below = i + 1 < rows.height;
    if (has_below) {
      read_row(below, perturbed, original, rows, i + 1);
    }
    for (int64_t s = 0; s < rows.segments; ++s) {
      const int64_t at = s * rows.length;
      std::fill(signs, signs + rows.length, A(0));
      if (has_below) {
        add_signs_below(signs, row + at, below + at, rows.paired(), rows.shift);
      }
      if (i > 0) {
        subtract_signs_above(signs, above + at, row + at, rows.paired());
      }
      write_gradient(out + rows.offset(s, i), signs, row + at, rows.length, variation, squared);
    }
    std::swap(above, row);
    std::swap(row, below);
  }
}

Tensor attack_penalty_backward(const Tensor& grad_penalty, const Tensor& perturbed, const Tensor& original, double tv,
                               double zero, double diff) {
  checks::attack_penalty_backward(grad_penalty, perturbed, original);
  const MemoryFormat format = image_format(perturbed);
  const Rows rows(perturbed, format);
  Tensor out = empty_output(perturbed, {perturbed.size(0), rows.channels, rows.height, rows.width},
                            perturbed.scalar_type(), format);
  if (out.numel() == 0) {
    return out;
  }
  const Tensor x = torch::stable::contiguous(perturbed, format);  // [N, C, H, W]
  const Tensor o = torch::stable::contiguous(original, format);   // [N, C, H, W]
  const Tensor g = torch::stable::contiguous(grad_penalty);       // [N]
  const int64_t n = perturbed.size(0), image_size = perturbed.numel() / n;
  const int64_t bands = (rows.height + kBandRows - 1) / kBandRows;
  dispatch_floating(perturbed.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const int64_t grain = std::max<int64_t>(1, kGrainValues / (kBandRows * rows.size()));
    torch::stable::parallel_for(0, n * bands, grain, [&](int64_t first, int64_t last) {
      std::vector<A> buffer(4 * rows.size());
      for (int64_t b = first; b < last; ++b) {
        const int64_t i = b / bands, at = i * image_size, begin = b % bands * kBandRows;
        const double grad = data_of<double>(g)[i];
        band_gradient(mutable_data_of<T>(out) + at, data_of<T>(x) + at, data_of<T>(o) + at, rows, begin,
                      std::min(begin + kBandRows, rows.height), variation_weight<A>(grad, tv),
                      squared_weight<A>(grad, diff, image_size), buffer.data());
      }
    });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(apem_fast, CPU, m) {
  m.impl("attack_penalty", TORCH_BOX(&attack_penalty));
  m.impl("attack_penalty_backward", TORCH_BOX(&attack_penalty_backward));
}

}  // namespace apem_fast
