// How the CPU kernels walk an image: in tiles of pixels. What a map gives to a tile is computed once, in a buffer that
// stays in the nearest cache, and applied in runs of consecutive values, one run per channel or, channels last, one.
#pragma once

#include "../checks.h"
#include "../math.h"
#include "../registration.h"
#include "output.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <vector>

namespace apem_fast {

constexpr int64_t kTileValues = 4096;    // all channels: they and what is read with them stay in the nearest cache
constexpr int64_t kTileStep = 64;        // pixels; a multiple of any vector
constexpr int64_t kGrainValues = 16384;  // work below this is not worth a second thread
constexpr int kLanes = 32;  // partial results that wait for nothing, so that any vector width can hold them

// Sizes of one image, and of the map that is applied to it. A map without channels is applied to all of them.
struct TiledImage {
  int64_t channels, pixels, size, map_size;
  bool map_has_channels, channels_last;
  int64_t tile_pixels, tiles;
};

inline TiledImage tiled_image(const Tensor& images, const Tensor& map, MemoryFormat format) {
  TiledImage t;
  t.channels = images.size(1);
  t.pixels = images.size(2) * images.size(3);
  t.size = t.channels * t.pixels;
  t.map_size = map.size(1) * t.pixels;
  t.map_has_channels = map.size(1) == t.channels;
  t.channels_last = format == MemoryFormat::ChannelsLast;
  t.tile_pixels = std::max<int64_t>(kTileStep, kTileValues / std::max<int64_t>(t.channels, 1) / kTileStep * kTileStep);
  t.tiles = (t.pixels + t.tile_pixels - 1) / t.tile_pixels;
  return t;
}

inline int64_t tile_grain(const TiledImage& t) {
  return std::max<int64_t>(1, kGrainValues / (std::min(t.tile_pixels, t.pixels) * t.channels));
}

template <typename A>
APEM_FAST_VECTOR_VERSIONS void repeat_per_channel(A* repeated, const A* values, int64_t pixels, int64_t channels) {
  if (channels == 3) {
    for (int64_t p = 0; p < pixels; ++p) {
      repeated[3 * p] = repeated[3 * p + 1] = repeated[3 * p + 2] = values[p];
    }
    return;
  }
  for (int64_t p = 0; p < pixels; ++p) {
    for (int64_t c = 0; c < channels; ++c) {
      repeated[p * channels + c] = values[p];
    }
  }
}

// Uninitialised values that begin on a cache line, so that no vector straddles two.
template <typename A>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t size) : lines_(new Line[size / kPerLine + 1]) {}
  A* data() { return lines_[0].value; }
  const A* data() const { return lines_[0].value; }

 private:
  static constexpr int64_t kPerLine = 64 / sizeof(A);
  struct alignas(64) Line {
    A value[kPerLine];
  };
  std::unique_ptr<Line[]> lines_;
};

// One thread's buffer for what a map gives to a tile.
template <typename A>
class TileBuffer {
 public:
  explicit TileBuffer(const TiledImage& t) : t_(t), values_(t.tile_pixels * (t.channels + 1)) {}

  // fill(to, at, count) computes map values [at, at + count).
  template <typename Fill>
  void fill(int64_t tile, const Fill& fill) {
    const int64_t begin = tile * t_.tile_pixels, count = std::min(t_.tile_pixels, t_.pixels - begin);
    A* values = values_.data();
    if (!t_.map_has_channels && t_.channels_last) {
      A* once = values + t_.tile_pixels * t_.channels;
      fill(once, begin, count);
      repeat_per_channel(values, once, count, t_.channels);
    } else if (!t_.map_has_channels) {
      fill(values, begin, count);
    } else if (t_.channels_last) {
      fill(values, begin * t_.channels, count * t_.channels);
    } else {
      for (int64_t c = 0; c < t_.channels; ++c) {
        fill(values + c * count, c * t_.pixels + begin, count);
      }
    }
  }

  // write(at, count, values) handles image values [at, at + count).
  template <typename Write>
  void for_each_run(int64_t tile, const Write& write) const {
    const int64_t begin = tile * t_.tile_pixels, count = std::min(t_.tile_pixels, t_.pixels - begin);
    const A* values = values_.data();
    if (t_.channels_last) {
      write(begin * t_.channels, count * t_.channels, values);
      return;
    }
    for (int64_t c = 0; c < t_.channels; ++c) {
      write(c * t_.pixels + begin, count, values + (t_.map_has_channels ? c * count : 0));
    }
  }

 private:
  const TiledImage& t_;
  AlignedBuffer<A> values_;
};

// R / norm of consecutive map values.
template <typename T, typename A>
APEM_FAST_VECTOR_VERSIONS void fill_quotients(A* quotient, const T* map, int64_t count, A norm, A level,
                                              bool irrelevance) {
  for (int64_t i = 0; i < count; ++i) {
    quotient[i] = probe_relevance(static_cast<A>(map[i]), level, irrelevance) / norm;
  }
}

}  // namespace apem_fast
