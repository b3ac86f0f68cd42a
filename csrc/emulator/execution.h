// CUDA's execution model on CPU threads: enough of it to run this project's kernels, unchanged, where there is no GPU.
//
// A thread of a block is a thread of a pool; blocks run one after the other. threadIdx and the like are thread-local,
// __shared__ is static, __syncthreads and the shuffles meet at barriers. So AddressSanitizer sees every access, and
// ThreadSanitizer every race inside a block. What cannot be seen here: races between blocks, memory order, streams,
// speed. Dynamic shared memory is missing because no kernel uses it.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  dim3(unsigned x, unsigned y, unsigned z) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace apem_fast::emulator {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

// Not std::barrier, at which ThreadSanitizer misses races.
class Barrier {
 public:
  explicit Barrier(unsigned threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

constexpr int kWarp = 32;

// The lanes' values meet here. Two sets take turns, so that one barrier for each exchange is enough: a lane writes into
// a set again only after the barrier of the exchange in between, to which every lane came after it had read.
struct Warp {
  struct alignas(16) Slot {
    unsigned char bytes[16];
  };
  Slot slots[2][kWarp];
  Barrier barrier{kWarp};
};

struct Block {
  explicit Block(int threads) : barrier(threads) {
    for (int warp = 0; warp < threads / kWarp; ++warp) {
      warps.push_back(std::make_unique<Warp>());
    }
  }
  Barrier barrier;
  std::vector<std::unique_ptr<Warp>> warps;
};

inline thread_local Block* current_block = nullptr;
inline thread_local int turn = 0;

// Threads that wait for work: starting 64 new ones for each launch would cost more than the kernels.
class Pool {
 public:
  void run(int threads, const std::function<void(int)>& body) {
    std::unique_lock<std::mutex> lock(mutex_);
    while (static_cast<int>(threads_.size()) < threads) {
      threads_.emplace_back([this, index = static_cast<int>(threads_.size())] { work(index); });
    }
    body_ = &body;
    wanted_ = running_ = threads;
    ++launch_;
    start_.notify_all();
    done_.wait(lock, [&] { return running_ == 0; });
    body_ = nullptr;
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      closing_ = true;
      ++launch_;
    }
    start_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

 private:
  void work(int index) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return launch_ != seen; });
      seen = launch_;
      if (closing_) {
        return;
      }
      if (index >= wanted_) {
        continue;
      }
      const std::function<void(int)>* body = body_;
      lock.unlock();
      (*body)(index);
      lock.lock();
      if (--running_ == 0) {
        done_.notify_one();
      }
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  std::vector<std::thread> threads_;
  const std::function<void(int)>* body_ = nullptr;
  int wanted_ = 0, running_ = 0;
  uint64_t launch_ = 0;
  bool closing_ = false;
};

inline void run_blocks(dim3 grid, int threads, const std::function<void()>& kernel) {
  static std::mutex one_launch_at_a_time;
  static Pool pool;
  if (threads <= 0 || threads % kWarp != 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0) {
    fail("a launch without blocks or with a block that is no whole number of warps");
  }
  std::lock_guard<std::mutex> lock(one_launch_at_a_time);
  Block block(threads);
  pool.run(threads, [&](int thread) {
    current_block = &block;
    turn = 0;
    threadIdx = dim3(thread, 0, 0);
    blockDim = dim3(threads, 1, 1);
    gridDim = grid;
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) {
          blockIdx = dim3(x, y, z);
          kernel();
          block.barrier.wait();  // the next block has the same shared memory
        }
      }
    }
  });
}

template <typename V>
V exchange(unsigned mask, const V& value, int source) {
  static_assert(std::is_trivially_copyable_v<V> && sizeof(V) <= sizeof(Warp::Slot));
  if (mask != 0xffffffffu) {
    fail("only whole warps can shuffle");
  }
  Warp& warp = *current_block->warps[threadIdx.x / kWarp];
  Warp::Slot* slots = warp.slots[turn];
  turn ^= 1;
  std::memcpy(slots[threadIdx.x % kWarp].bytes, &value, sizeof(V));
  warp.barrier.wait();
  V result;
  std::memcpy(&result, slots[source].bytes, sizeof(V));
  return result;
}

}  // namespace apem_fast::emulator

inline void __syncthreads() { apem_fast::emulator::current_block->barrier.wait(); }

template <typename V>
V __ldg(const V* address) {
  return *address;
}

template <typename V>
V __shfl_xor_sync(unsigned mask, V value, int distance) {
  return apem_fast::emulator::exchange(mask, value, static_cast<int>(threadIdx.x % 32) ^ distance);
}

template <typename V>
V __shfl_up_sync(unsigned mask, V value, unsigned distance) {
  const int lane = threadIdx.x % 32, source = lane - static_cast<int>(distance);
  return apem_fast::emulator::exchange(mask, value, source < 0 ? lane : source);
}

inline int __any_sync(unsigned mask, int predicate) {
  for (int distance = 16; distance > 0; distance /= 2) {
    predicate |= __shfl_xor_sync(mask, predicate, distance);
  }
  return predicate;
}

template <typename Integer>
Integer atomicAdd(Integer* address, Integer value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

namespace apem_fast {

// So small that ordinary tests already give a grid more to do than it has blocks.
struct Limits {
  static inline int64_t most_x = 3, most_yz = 2;
  static int64_t x() { return most_x; }
  static int64_t yz() { return most_yz; }
  static int64_t cache_bytes() { return 1 << 9; }
  // Few deviations: that the percentile is missed, and found in another way, happens in ordinary tests, too.
  static int64_t least_sampled() { return 500; }
  static int64_t sampled_sectors() { return 48; }
  static double deviations() { return 0.3; }
};

template <typename... Parameters>
void launch_kernel(void (*kernel)(Parameters...), dim3 grid, int block, cudaStream_t, Parameters... arguments) {
  emulator::run_blocks(grid, block, [&] { kernel(arguments...); });
}

}  // namespace apem_fast
