// What the test programs share. They run the kernels on buffers that end where the data ends, at the sizes where bounds
// and alignment matter, so that a sanitizer sees each step too far; and they compare with plain loops.
#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

namespace testing {

using BFloat16 = torch::headeronly::BFloat16;

constexpr int kBlock = 64;  // two warps

// The first mismatch is printed, and the program goes on: what follows may still show a sanitizer the cause.
inline int mismatches = 0;

inline void expect(bool holds, const char* what) {
  if (!holds && mismatches++ == 0) {
    std::fprintf(stderr, "expected: %s\n", what);
  }
}

// What main() returns.
inline int result() { return mismatches == 0 ? 0 : 1; }

#define EXPECT(condition) ::testing::expect((condition), #condition)

// Starts `offset` elements behind a boundary of 16 bytes and ends with its last element.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count, int64_t offset = 0)
      : memory_(static_cast<T*>(std::malloc(sizeof(T) * (count + offset)))), offset_(offset), count_(count) {
    for (int64_t i = 0; i < count; ++i) {
      data()[i] = T{};
    }
  }
  ~Buffer() { std::free(memory_); }
  Buffer(const Buffer&) = delete;

  T* data() { return memory_ + offset_; }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return count_; }

  template <typename F>
  void fill(const F& value_at) {
    for (int64_t i = 0; i < count_; ++i) {
      data()[i] = static_cast<T>(value_at(i));
    }
  }

 private:
  T* memory_;
  int64_t offset_, count_;
};

// The same numbers in every run.
class Random {
 public:
  int64_t below(int64_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((state_ >> 33) % static_cast<uint64_t>(bound));
  }
  double uniform() { return static_cast<double>(below(1 << 20)) / (1 << 20); }
  double centred() { return 2 * uniform() - 1; }

 private:
  uint64_t state_ = 20;
};

template <typename A>
bool same(A a, A b) {
  return a == b || (std::isnan(static_cast<double>(a)) && std::isnan(static_cast<double>(b)));
}

inline bool near(double a, double b, double tolerance) {
  return (std::isnan(a) && std::isnan(b)) || std::fabs(a - b) <= tolerance * (std::fabs(a) + std::fabs(b) + 1e-3);
}

}  // namespace testing
