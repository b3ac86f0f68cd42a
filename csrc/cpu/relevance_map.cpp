// relevance_map on the CPU, one image per thread: the percentile is selected digit by digit from the bits of the
// magnitudes, nothing is sorted; then one pass clips, multiplies and sums, and one rescales.

#include "tiles.h"

namespace apem_fast {
namespace {

constexpr int kHistograms = 4;  // neighbours count into different ones, so that no addition waits for the one before

// The keys that are still in question, and the least of those found to be greater than the one sought.
template <typename Key>
struct Selection {
  std::vector<Key> keys;
  int64_t rank;
  Key next_greater = std::numeric_limits<Key>::max();
  bool missing = false;
};

// Settles one digit: counts it in `count` keys read by key_at, then keeps those that have the digit of the rank.
template <typename T, typename KeyAt>
void settle_digit(Selection<magnitude_key_t<T>>& selection, int64_t count, int shift, int bits, const KeyAt& key_at) {
  using Key = magnitude_key_t<T>;
  const int digits = 1 << bits;
  std::vector<uint32_t> histogram(kHistograms * digits);
  Key greatest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Key key = key_at(i);
    ++histogram[(i % kHistograms) * digits + digit_at(key, shift, bits)];
    greatest = std::max(greatest, key);
  }
  selection.missing = selection.missing || is_missing_key<T>(greatest);
  for (int h = 1; h < kHistograms; ++h) {
    for (int d = 0; d < digits; ++d) {
      histogram[d] += histogram[h * digits + d];
    }
  }
  const Digit found = digit_of_rank(histogram.data(), digits, selection.rank);
  selection.rank = found.rank;
  std::vector<Key> kept(histogram[found.digit] + 1);  // one more: the loop below writes before it decides
  int64_t size = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Key key = key_at(i);
    const int digit = digit_at(key, shift, bits);
    kept[size] = key;
    size += digit == found.digit;
    const Key greater = digit > found.digit ? key : std::numeric_limits<Key>::max();
    selection.next_greater = std::min(selection.next_greater, greater);
  }
  kept.pop_back();
  selection.keys.swap(kept);
}

// The percentile of |values|, and NaN if any of them is.
template <typename T>
arithmetic_t<T> magnitude_percentile(const T* values, int64_t count, double percentile) {
  using A = arithmetic_t<T>;
  using Key = magnitude_key_t<T>;
  const PercentilePosition position = percentile_position(percentile, count);
  Selection<Key> selection;
  selection.rank = position.below;
  int shift = next_shift(kKeyBits<T>);
  settle_digit<T>(selection, count, shift, kKeyBits<T> - shift, [=](int64_t i) { return magnitude_key(values[i]); });
  while (shift > 0 && !selection.missing) {
    const int bits_left = shift;
    shift = next_shift(shift);
    const std::vector<Key> keys = std::move(selection.keys);
    settle_digit<T>(selection, static_cast<int64_t>(keys.size()), shift, bits_left - shift,
                    [&](int64_t i) { return keys[i]; });
  }
  if (selection.missing) {
    return std::numeric_limits<A>::quiet_NaN();
  }
  // What is left is one key, as often as it occurs.
  const Key low = selection.keys[0];
  const bool again = selection.rank + position.above - position.below < static_cast<int64_t>(selection.keys.size());
  const Key high = again ? low : selection.next_greater;
  return interpolated(static_cast<A>(value_of_key<T>(low)), static_cast<A>(value_of_key<T>(high)), position.fraction);
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS Extent<A> extent_of(const A* values, int64_t count) {
  A low[kLanes], high[kLanes];
  int missing[kLanes] = {};
  std::fill(low, low + kLanes, std::numeric_limits<A>::infinity());
  std::fill(high, high + kLanes, -std::numeric_limits<A>::infinity());
  int64_t i = 0;
  const auto update = [&](int l, A value) {
    low[l] = value < low[l] ? value : low[l];
    high[l] = value > high[l] ? value : high[l];
    missing[l] |= is_missing(value);
  };
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      update(l, values[i + l]);
    }
  }
  for (; i < count; ++i) {
    update(0, values[i]);
  }
  Extent<A> extent = no_values<A>();
  for (int l = 0; l < kLanes; ++l) {
    extent = merged(extent, Extent<A>{low[l], high[l], missing[l] != 0});
  }
  return extent;
}

// How the values of an image lie in memory, and those of the pixels that multiply them.
struct Strides {
  int64_t pixel, channel, image_pixel, image_channel;
};

template <bool kChannelsLast>
APEM_FAST_HOST_DEVICE Strides strides_of(int64_t pixels, int64_t channels, bool image_has_channels) {
  const int64_t pixel = kChannelsLast ? channels : 1, channel = kChannelsLast ? 1 : pixels;
  return {pixel, channel, image_has_channels ? pixel : 1, image_has_channels ? channel : 0};
}

// Clips, multiplies, and sums the channels in order. kChannels: 3, or 0 for a number known at run time.
template <int kChannels, bool kChannelsLast, bool kProduct, typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void sum_channels(A* total, const T* attribution, const T* image, int64_t pixels,
                                            int64_t channels, bool image_has_channels, A limit) {
  const int64_t count = kChannels ? kChannels : channels;
  const Strides s = strides_of<kChannelsLast>(pixels, count, image_has_channels);
  const auto value_at = [=](int64_t p, int64_t c) {
    const A value = clipped_magnitude(static_cast<A>(attribution[p * s.pixel + c * s.channel]), limit);
    return kProduct ? value * static_cast<A>(image[p * s.image_pixel + c * s.image_channel]) : value;
  };
  for (int64_t p = 0; p < pixels; ++p) {
    A sum = value_at(p, 0);
    for (int64_t c = 1; c < count; ++c) {
      sum = sum + value_at(p, c);
    }
    total[p] = sum;
  }
}

// Clips and multiplies; the values stay where they are.
template <bool kChannelsLast, bool kProduct, typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void keep_channels(A* kept, const T* attribution, const T* image, int64_t pixels,
                                             int64_t channels, bool image_has_channels, A limit) {
  const Strides s = strides_of<kChannelsLast>(pixels, channels, image_has_channels);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < pixels; ++p) {
      const int64_t at = p * s.pixel + c * s.channel;
      const A value = clipped_magnitude(static_cast<A>(attribution[at]), limit);
      kept[at] = kProduct ? value * static_cast<A>(image[p * s.image_pixel + c * s.image_channel]) : value;
    }
  }
}

// Calls f with std::true_type or std::false_type.
template <typename F>
void dispatch_bool(bool value, const F& f) {
  value ? f(std::true_type{}) : f(std::false_type{});
}

template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void rescale(T* out, const A* values, int64_t count, Extent<A> extent) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<T>(rescaled(values[i], extent));
  }
}

Tensor relevance_map(const Tensor& attribution, const std::optional<Tensor>& images, std::optional<double> percentile,
                     std::string channels) {
  checks::relevance_map(attribution, images, percentile, channels);
  const MemoryFormat format = image_format(attribution);
  const bool sum = channels == "sum", channels_last = format == MemoryFormat::ChannelsLast;
  const int64_t n = attribution.size(0), c = attribution.size(1), h = attribution.size(2), w = attribution.size(3);
  const int64_t pixels = h * w, size = c * pixels, out_size = sum ? pixels : size;
  Tensor out = empty_image(attribution, {n, sum ? 1 : c, h, w}, attribution.scalar_type(), format);
  if (attribution.numel() == 0) {
    return torch::stable::zero_(out);
  }
  const Tensor a = torch::stable::contiguous(attribution, format);           // [N, C, H, W]
  const Tensor x = images ? torch::stable::contiguous(*images, format) : a;  // [N, 1 or C, H, W]
  const bool image_has_channels = x.size(1) == c;
  const int64_t image_size = x.size(1) * pixels;

  dispatch_floating(attribution.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    const auto combine = [&](A* to, const T* attributed, const T* image, A limit) {
      dispatch_bool(channels_last, [&](auto last) {
        dispatch_bool(images.has_value(), [&](auto product) {
          constexpr bool kLast = decltype(last)::value, kProduct = decltype(product)::value;
          if (!sum) {
            keep_channels<kLast, kProduct>(to, attributed, image, pixels, c, image_has_channels, limit);
          } else if (c == 3) {
            sum_channels<3, kLast, kProduct>(to, attributed, image, pixels, c, image_has_channels, limit);
          } else {
            sum_channels<0, kLast, kProduct>(to, attributed, image, pixels, c, image_has_channels, limit);
          }
        });
      });
    };
    torch::stable::parallel_for(0, n, std::max<int64_t>(1, kGrainValues / size), [&](int64_t begin, int64_t end) {
      std::vector<A> values(out_size);
      for (int64_t i = begin; i < end; ++i) {
        const T* attributed = data_of<T>(a) + i * size;
        const A limit =
            percentile ? magnitude_percentile(attributed, size, *percentile) : std::numeric_limits<A>::infinity();
        combine(values.data(), attributed, data_of<T>(x) + i * image_size, limit);
        rescale(mutable_data_of<T>(out) + i * out_size, values.data(), out_size, extent_of(values.data(), out_size));
      }
    });
  });
  return out;
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) { APEM_FAST_KERNEL(m, relevance_map); }

}  // namespace apem_fast
