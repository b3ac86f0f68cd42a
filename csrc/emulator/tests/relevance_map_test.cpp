#include "cuda/relevance_map_kernel.cuh"
#include "testing.h"

#include <algorithm>

using namespace apem_fast;
using namespace testing;

namespace {

// How often the percentile was found among what was gathered around it, and how often not.
int found = 0, missed = 0;

template <typename T>
void test(int64_t channels, int64_t pixels, bool channels_last, int64_t image_channels, bool keep, int64_t offset,
          float step = 1.f / 16) {
  using A = arithmetic_t<T>;
  const int64_t n = 4, size = channels * pixels, out_size = keep ? size : pixels;
  const bool image_per_channel = image_channels == channels || image_channels == 0;
  const PercentilePosition position = percentile_position(73.3, size);
  Random random;
  Buffer<T> attribution(n * size, offset), images(n * std::max<int64_t>(1, image_channels) * pixels, offset);
  Buffer<T> out(n * out_size, offset);
  attribution.fill([&](int64_t) { return static_cast<float>(std::round(1.25f / step * random.centred()) * step); });
  images.fill([&](int64_t) { return static_cast<float>(random.uniform()); });

  const Cover cover(channels, pixels, keep && image_per_channel ? channels : 1, channels_last);
  const int64_t room = room_for_candidates(size), chunks = chunks_of(cover.pixels);
  Buffer<A> limit(n);
  Buffer<Bracket<T>> bracket(n);
  Buffer<magnitude_key_t<T>> candidates(n * room);
  Buffer<Extent<A>> extent(n * chunks);
  launch_relevance_map<kBlock>(
      RelevanceMapArguments<T>{attribution.data(), image_channels ? images.data() : nullptr, out.data(), n, cover,
                               image_per_channel, keep, true, position, limit.data(), bracket.data(), candidates.data(),
                               extent.data(), room, chunks},
      nullptr);
  for (int64_t image = 0; image < n && is_sampled(size); ++image) {
    const int64_t below = bracket[image].below, gathered = bracket[image].gathered;
    const bool lies_within = below <= position.below && position.above < below + gathered && gathered <= room;
    ++(lies_within ? found : missed);
  }
  for (int64_t image = 0; image < n; ++image) {
    const T* row = attribution.data() + image * size;
    std::vector<A> sorted;
    for (int64_t i = 0; i < size; ++i) {
      sorted.push_back(std::fabs(static_cast<A>(row[i])));
    }
    std::sort(sorted.begin(), sorted.end());
    const A limit = interpolated(sorted[position.below], sorted[position.above], position.fraction);
    std::vector<A> values(out_size);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t at = channels_last ? pixel * channels + c : c * pixels + pixel;
        A value = std::min(std::fabs(static_cast<A>(row[at])), limit);
        if (image_channels > 0) {
          value *= static_cast<A>(image_per_channel ? images[image * size + at] : images[image * pixels + pixel]);
        }
        values[keep ? at : pixel] += value;
      }
    }
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    const A low = *least, high = *most;
    for (int64_t i = 0; i < out_size; ++i) {
      const A expected = high == low ? (low == 0 ? A(0) : A(0.5)) : (values[i] - low) / (high - low);
      EXPECT(same(out[image * out_size + i], static_cast<T>(expected)));
    }
  }
}

}  // namespace

int main() {
  for (const int64_t offset : {0, 1}) {
    for (const int64_t pixels : {1, 15, 248}) {
      for (const bool channels_last : {false, true}) {
        for (const int64_t image_channels : {0, 1, 3}) {
          for (const bool keep : {false, true}) {
            test<float>(3, pixels, channels_last, image_channels, keep, offset);
            test<BFloat16>(3, pixels, channels_last, image_channels, keep, offset);
          }
        }
        test<double>(3, pixels, channels_last, 3, false, offset);
        test<double>(3, pixels, channels_last, 3, true, offset, 1.f / 4096);
        test<float>(3, pixels, channels_last, 3, false, offset, 1.f / 4096);
      }
    }
  }
  EXPECT(found > 0 && missed > 0);
  return result();
}
