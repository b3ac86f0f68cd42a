// A percentile of the magnitudes of each image on CUDA: selected, not sorted, by counting digits of the keys (math.h)
// in histograms of integers, so that the result does not depend on the order of the threads.
//
// A large image is not read once for each digit. A sample of its sectors says between which two keys the percentile
// must lie but for a chance of one in a billion; one pass counts the keys below and gathers those in between, some two
// of a hundred; among them the percentile is selected. Where it does not lie there, or where too many do (equal
// values), it is selected among all. The sample is always the same, and which keys are gathered in what order makes no
// difference.
#pragma once

#include "access.cuh"
#include "chunks.cuh"
#include "reduction.cuh"

namespace apem_fast {

// Counts are of 32 bits.
constexpr int64_t kMostValuesPerImage = 4294967295;

constexpr int kSectorBytes = 32;  // what one access to memory brings at least
constexpr int kSectorParts = 1 << 16;
constexpr int64_t kKeysOfChunk = 16384;

// What is known of an image while its percentile is looked for.
template <typename T>
struct Bracket {
  magnitude_key_t<T> least, greatest;  // of the keys that are gathered
  unsigned below, gathered;  // how many keys are less, and how many lie within, more than there is room for too
};

template <typename T>
struct PercentileArguments {
  const T* rows;                   // [N, size]
  arithmetic_t<T>* limit;          // [N], written: the percentile
  Bracket<T>* bracket;             // [N], written and read; nullptr: selected among all
  magnitude_key_t<T>* candidates;  // [N, room], written and read
  int64_t N, size, room, chunks;
  PercentilePosition position;
  int64_t sectors, least_rank, greatest_rank;  // of the sample; ranks outside it: no bound
  uint64_t sector_step;                        // from one sector to the next, in 1 / kSectorParts of a sector
};

// Room for gathered keys: several times what is expected.
inline int64_t room_for_candidates(int64_t size) { return size / 8; }

inline bool is_sampled(int64_t size) { return size >= Limits::least_sampled(); }

// Fills in the sample and the ranks in it. A value's chance to lie below the percentile is q; sectors are taken for
// independent, the values within one are not.
template <typename T>
PercentileArguments<T> with_sample(PercentileArguments<T> a) {
  constexpr int64_t kOfSector = kSectorBytes / static_cast<int64_t>(sizeof(T));
  a.sectors = std::min(Limits::sampled_sectors(), a.size / kOfSector);
  const double values = static_cast<double>(a.sectors * kOfSector);
  const double q = (static_cast<double>(a.position.below) + 0.5) / static_cast<double>(a.size);
  const double deviation = std::sqrt(q * (1 - q) / static_cast<double>(a.sectors)) * values;
  const double around = Limits::deviations() * deviation + static_cast<double>(kOfSector);
  a.least_rank = static_cast<int64_t>(std::floor(q * values - around));
  a.greatest_rank = static_cast<int64_t>(std::ceil(q * values + around));
  a.sector_step = static_cast<uint64_t>(a.size / kOfSector) * kSectorParts / static_cast<uint64_t>(a.sectors);
  a.chunks = ceil_div(a.size, kKeysOfChunk);
  return a;
}

// Calls `visit(key)` for every key of a row, the threads of a block together.
template <typename Access, typename T, typename Visit>
__device__ __forceinline__ void visit_keys(const T* row, int64_t size, const Visit& visit) {
#pragma unroll 2
  for (int64_t i = int64_t{threadIdx.x} * Access::kElements; i < size; i += Access::kBlock * Access::kElements) {
    const auto values = load<Access>(row + i);
#pragma unroll
    for (int e = 0; e < Access::kElements; ++e) {
      visit(magnitude_key(values[e]));
    }
  }
}

// The same for the keys of the sample: of equal parts of the row a sector each, not always the part's first one, so
// that rows of pixels are not all met in one column.
template <int kBlock, typename T, typename Visit>
__device__ __forceinline__ void visit_sample(const T* row, const PercentileArguments<T>& a, const Visit& visit) {
  constexpr int kOfSector = kSectorBytes / static_cast<int>(sizeof(T));
  const unsigned values = static_cast<unsigned>(a.sectors) * kOfSector;
#pragma unroll 4
  for (unsigned i = threadIdx.x; i < values; i += kBlock) {
    const unsigned sector = i / kOfSector;
    const uint64_t later = (sector * 2654435769u) % kSectorParts;
    const uint64_t at = (sector * a.sector_step + (later * a.sector_step) / kSectorParts) / kSectorParts;
    visit(magnitude_key(load<Access<T, kBlock, false>>(row + at * kOfSector + i % kOfSector)[0]));
  }
}

// The digit of a rank in a histogram that the block shares, found by all of its threads.
template <int kBlock>
__device__ __forceinline__ Digit find_digit(const unsigned* histogram, int64_t rank) {
  constexpr int kPerThread = (1 << kDigitBits) / kBlock;
  static_assert(kPerThread * kBlock == 1 << kDigitBits);
  __shared__ Digit found;
  const unsigned* own = histogram + threadIdx.x * kPerThread;
  unsigned count = 0;
  for (int digit = 0; digit < kPerThread; ++digit) {
    count += own[digit];
  }
  const int64_t before = block_exclusive_sum<kBlock>(count);  // its barriers let all read what was found before
  if (before <= rank && rank < before + count) {              // in exactly one thread
    found = digit_of_rank(own, kPerThread, rank - before);
    found.digit += threadIdx.x * kPerThread;
  }
  __syncthreads();
  return found;
}

template <int kBlock>
__device__ __forceinline__ void clear(unsigned* histogram) {
  for (int digit = threadIdx.x; digit < 1 << kDigitBits; digit += kBlock) {
    histogram[digit] = 0;
  }
}

// The magnitude of a rank, and what lies a fraction of the way to the next one, among the keys that `visit_all` calls
// its argument with.
template <int kBlock, typename T, typename VisitAll>
__device__ arithmetic_t<T> selected(int64_t rank, double fraction, const VisitAll& visit_all) {
  using A = arithmetic_t<T>;
  using Key = magnitude_key_t<T>;
  using WideKey = std::conditional_t<sizeof(Key) == 8, unsigned long long, unsigned>;
  __shared__ unsigned histogram[1 << kDigitBits];

  Key low = 0;  // its digits at `settled` and above are known, and `rank` is that among the keys that share them
  for (int settled = kKeyBits<T>; settled > 0;) {
    const int shift = next_shift(settled), bits = settled - shift;
    clear<kBlock>(histogram);
    __syncthreads();
    visit_all([&](Key key) {
      if ((key >> settled) == (low >> settled)) {
        atomicAdd(&histogram[digit_at(key, shift, bits)], 1u);
      }
    });
    __syncthreads();
    const Digit found = find_digit<kBlock>(histogram, rank);
    low = static_cast<Key>(low | static_cast<Key>(Key(found.digit) << shift));
    rank = found.rank;
    settled = shift;  // the histogram was last read before the barrier, so the next pass may clear it
  }

  const A at_low = static_cast<A>(value_of_key<T>(low));
  if (fraction == 0) {
    return at_low;
  }
  const int last_bits = kKeyBits<T> % kDigitBits == 0 ? kDigitBits : kKeyBits<T> % kDigitBits;
  Key high = low;
  if (rank + 1 >= static_cast<int64_t>(histogram[digit_at(low, 0, last_bits)])) {  // no second value equals the first
    WideKey least = std::numeric_limits<WideKey>::max();
    visit_all([&](Key key) { least = key > low && key < least ? key : least; });
    least = block_reduce<kBlock>(least, [](WideKey x, WideKey y) { return x < y ? x : y; });
    high = static_cast<Key>(least);
  }
  return interpolated(at_low, static_cast<A>(value_of_key<T>(high)), fraction);
}

// The percentile of a row, by a block that reads it once for each digit.
template <typename Access, typename T>
__device__ __forceinline__ arithmetic_t<T> percentile_of_row(const T* row, int64_t size,
                                                             const PercentilePosition& position) {
  return selected<Access::kBlock, T>(position.below, position.fraction,
                                     [&](const auto& visit) { visit_keys<Access>(row, size, visit); });
}

// The bracket of each image, a block for an image: its bounds are keys of two digits, rounded away from each other.
template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64) sample_kernel(PercentileArguments<T> a) {
  using Key = magnitude_key_t<T>;
  constexpr int kShift = next_shift(kKeyBits<T>), kNext = next_shift(kShift), kBits = kKeyBits<T> - kShift;
  __shared__ unsigned first[1 << kDigitBits], of_least[1 << kDigitBits], of_greatest[1 << kDigitBits];
  const int64_t values = a.sectors * (kSectorBytes / static_cast<int>(sizeof(T)));
  for (int64_t n = blockIdx.x; n < a.N; n += gridDim.x) {
    const T* row = a.rows + n * a.size;
    __syncthreads();  // the counts of the image before may still be being read
    clear<Access::kBlock>(first);
    clear<Access::kBlock>(of_least);
    clear<Access::kBlock>(of_greatest);
    __syncthreads();
    visit_sample<Access::kBlock>(row, a, [&](Key key) { atomicAdd(&first[digit_at(key, kShift, kBits)], 1u); });
    __syncthreads();
    const int64_t low_rank = a.least_rank < 0 ? 0 : a.least_rank;
    const int64_t high_rank = a.greatest_rank < values ? a.greatest_rank : values - 1;
    const Digit low = find_digit<Access::kBlock>(first, low_rank);
    const Digit high = find_digit<Access::kBlock>(first, high_rank);
    visit_sample<Access::kBlock>(row, a, [&](Key key) {
      const int digit = digit_at(key, kShift, kBits), next = digit_at(key, kNext, kShift - kNext);
      if (digit == low.digit) {
        atomicAdd(&of_least[next], 1u);
      }
      if (digit == high.digit) {
        atomicAdd(&of_greatest[next], 1u);
      }
    });
    __syncthreads();
    const Digit next_low = find_digit<Access::kBlock>(of_least, low.rank);
    const Digit next_high = find_digit<Access::kBlock>(of_greatest, high.rank);
    if (threadIdx.x == 0) {
      const Key least = static_cast<Key>((Key(low.digit) << kShift) | (Key(next_low.digit) << kNext));
      const Key below = static_cast<Key>((Key(1) << kNext) - 1);
      const Key greatest = static_cast<Key>((Key(high.digit) << kShift) | (Key(next_high.digit) << kNext) | below);
      a.bracket[n] = {a.least_rank < 0 ? Key(0) : least,
                      a.greatest_rank < values ? greatest : std::numeric_limits<Key>::max(), 0, 0};
    }
  }
}

// Counts the keys below the bracket and gathers those within it, chunk by chunk.
template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf64) gather_kernel(PercentileArguments<T> a) {
  using Key = magnitude_key_t<T>;
  constexpr unsigned kStaged = 4096 / sizeof(Key);
  __shared__ Key staged[kStaged];
  __shared__ unsigned staged_count, place;
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    Bracket<T>& bracket = a.bracket[n];
    const Key least = bracket.least, greatest = bracket.greatest;
    Key* candidates = a.candidates + n * a.room;
    const auto keep = [&](unsigned at, Key key) {
      if (at < a.room) {
        candidates[at] = key;
      }
    };
    for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
      if (threadIdx.x == 0) {
        staged_count = 0;
      }
      __syncthreads();
      unsigned below = 0;
      visit_chunk<Access::kBlock>(a.size / Access::kElements, a.chunks, chunk, [&](int64_t item) {
        const auto values = load<Access>(a.rows + n * a.size + item * Access::kElements);
#pragma unroll
        for (int i = 0; i < Access::kElements; ++i) {
          const Key key = magnitude_key(values[i]);
          below += key < least;
          if (least <= key && key <= greatest) {
            const unsigned at = atomicAdd(&staged_count, 1u);
            if (at < kStaged) {
              staged[at] = key;
            } else {
              keep(atomicAdd(&bracket.gathered, 1u), key);
            }
          }
        }
      });
      below = block_reduce<Access::kBlock>(below, [](unsigned x, unsigned y) { return x + y; });
      const unsigned count = staged_count < kStaged ? staged_count : kStaged;
      if (threadIdx.x == 0) {
        atomicAdd(&bracket.below, below);
        place = atomicAdd(&bracket.gathered, count);
      }
      __syncthreads();
      for (unsigned i = threadIdx.x; i < count; i += Access::kBlock) {
        keep(place + i, staged[i]);
      }
      __syncthreads();  // the next chunk's keys go to the same places
    }
  }
}

// The percentile of each image, a block for an image: among what was gathered where it lies there, else among all.
template <typename Access, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128) select_kernel(PercentileArguments<T> a) {
  using Key = magnitude_key_t<T>;
  for (int64_t n = blockIdx.x; n < a.N; n += gridDim.x) {
    const T* row = a.rows + n * a.size;
    const Bracket<T> bracket = a.bracket[n];
    const int64_t below = bracket.below, gathered = bracket.gathered, rank = a.position.below - below;
    arithmetic_t<T> limit;
    if (gathered <= a.room && 0 <= rank && a.position.above - below < gathered) {
      const Key* candidates = a.candidates + n * a.room;
      limit = selected<Access::kBlock, T>(rank, a.position.fraction, [&](const auto& visit) {
        for (int64_t i = threadIdx.x; i < gathered; i += Access::kBlock) {
          visit(__ldg(candidates + i));
        }
      });
    } else {
      limit = percentile_of_row<Access>(row, a.size, a.position);
    }
    if (threadIdx.x == 0) {
      a.limit[n] = limit;
    }
    __syncthreads();  // the next image's selection clears what this one's still reads
  }
}

// Writes `limit`. For images that `is_sampled`.
template <int kSelect, int kGather, typename T>
void launch_percentile(const PercentileArguments<T>& arguments, cudaStream_t stream) {
  const PercentileArguments<T> a = with_sample(arguments);
  const auto run = [&](auto select, auto gather) {
    launch(sample_kernel<Access<T, kSelect, false>, T>, a.N, 1, 1, kSelect, stream, a);
    launch(gather_kernel<decltype(gather), T>, a.chunks, a.N, 1, kGather, stream, a);
    launch(select_kernel<decltype(select), T>, a.N, 1, 1, kSelect, stream, a);
  };
  if (fits_vectors(Access<T, kGather, true>::kElements, a.size, a.rows)) {
    run(Access<T, kSelect, true>{}, Access<T, kGather, true>{});
  } else {
    run(Access<T, kSelect, false>{}, Access<T, kGather, false>{});
  }
}

}  // namespace apem_fast
