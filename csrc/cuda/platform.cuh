// What every kernel file starts from: CUDA itself or, where APEM_FAST_EMULATOR is defined, its execution model on CPU
// threads; and one way of launching a kernel that both understand. Free of torch.
#pragma once

#if defined(APEM_FAST_EMULATOR)
#include "../emulator/execution.h"
#else
#include <cuda_runtime.h>
#endif

#include "../math.h"

#include <algorithm>
#include <cstdint>

namespace apem_fast {

constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

#if !defined(APEM_FAST_EMULATOR)
// What the hardware sets. No dimension of a grid exceeds its limit: kernels stride over what is left.
struct Limits {
  static int64_t x() { return 2147483647; }
  static int64_t yz() { return 65535; }
  // What stays in the second-level cache from one kernel to the next: a third of an H100's or an A100's.
  static int64_t cache_bytes() { return 16 << 20; }
  // Of an image whose percentile is first narrowed down by a sample: its least values, the sectors of 32 bytes in the
  // sample, and how many standard deviations of a rank in it the percentile is looked for within.
  static int64_t least_sampled() { return 1 << 16; }
  static int64_t sampled_sectors() { return 4096; }
  static double deviations() { return 6; }
};

template <typename... Parameters>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, int block, cudaStream_t stream, Parameters... arguments) {
  kernel<<<grid, block, 0, stream>>>(arguments...);
}
#endif

inline int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Runs `kernel` on x * y * z blocks, or on as many as a grid can have; on none, if there are none.
template <typename Arguments>
void launch(void (*kernel)(Arguments), int64_t x, int64_t y, int64_t z, int block, cudaStream_t stream,
            const Arguments& arguments) {
  if (x <= 0 || y <= 0 || z <= 0) {
    return;
  }
  const auto at_most = [](int64_t blocks, int64_t limit) { return static_cast<unsigned>(std::min(blocks, limit)); };
  const dim3 grid(at_most(x, Limits::x()), at_most(y, Limits::yz()), at_most(z, Limits::yz()));
  launch_kernel(kernel, grid, block, stream, arguments);
}

}  // namespace apem_fast
