// How kernels touch memory: 16 bytes at a time where every row starts on such a boundary, one element otherwise.
#pragma once

#include "platform.cuh"

namespace apem_fast {

constexpr int kAccessBytes = 16;

// Elements that lie side by side, moved in as few accesses of up to 16 bytes as they need.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < kAccessBytes ? sizeof(T) * kCount : kAccessBytes) Pack {
  T values[kCount];

  APEM_FAST_HOST_DEVICE T& operator[](int i) { return values[i]; }
  APEM_FAST_HOST_DEVICE const T& operator[](int i) const { return values[i]; }
};

// One kernel's way through memory: threads per block, elements per thread and step, and their vector type. `Narrowest`
// is the smallest floating type the kernel moves, so that its accesses are of 16 bytes and wider types take several.
template <typename Narrowest, int kThreads, bool kVector>
struct Access {
  static constexpr int kBlock = kThreads;
  static constexpr int kElements = kVector ? kAccessBytes / static_cast<int>(sizeof(Narrowest)) : 1;
  template <typename T>
  using Vector = Pack<T, kElements>;

  // Blocks that a multiprocessor holds if threads have 64 or 128 registers. As a launch bound it keeps the compiler
  // from spilling registers for the sake of still more blocks.
  static constexpr int kBlocksOf64 = std::max(1, 65536 / 64 / kThreads);
  static constexpr int kBlocksOf128 = std::max(1, 65536 / 128 / kThreads);
};

// The way to a single element beside a pack.
template <typename Packed, typename T>
using Single = Access<T, Packed::kBlock, false>;

template <typename A, typename B>
using narrower_t = std::conditional_t<(sizeof(B) < sizeof(A)), B, A>;

// The machine's own types of 1 to 16 bytes.
template <int kBytes>
using word_t = std::conditional_t<
    kBytes == 16, uint4,
    std::conditional_t<kBytes == 8, uint2,
                       std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes == 2, uint16_t, uint8_t>>>>;

// Whether what is moved is wanted again soon, by this kernel or the next, or only passes through: then it is the first
// to leave the second-level cache, and what is wanted again stays in it.
enum class Use { kAgain, kOnce };

// As __ldg, but the first to leave the caches. (__ldcs is volatile: no load would move past another or past a store.)
template <typename Word>
__device__ __forceinline__ Word load_passing(const Word* from) {
#if defined(APEM_FAST_EMULATOR)
  return *from;
#else
  Word word;
  if constexpr (sizeof(Word) == 16) {
    asm("ld.global.cs.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
        : "l"(from));
  } else if constexpr (sizeof(Word) == 8) {
    asm("ld.global.cs.nc.v2.u32 {%0, %1}, [%2];" : "=r"(word.x), "=r"(word.y) : "l"(from));
  } else if constexpr (sizeof(Word) == 4) {
    asm("ld.global.cs.nc.u32 %0, [%1];" : "=r"(word) : "l"(from));
  } else {
    word = __ldg(from);  // the way to single elements, which is not for speed
  }
  return word;
#endif
}

// Only from what no thread writes while the kernel runs. So the compiler may move loads past stores, and those of a
// whole item are under way together.
template <typename Access, Use kUse = Use::kAgain, typename T>
__device__ __forceinline__ typename Access::template Vector<T> load(const T* from) {
  using Vector = typename Access::template Vector<T>;
  using Word = word_t<alignof(Vector)>;
  Word words[sizeof(Vector) / sizeof(Word)];
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Vector) / sizeof(Word)); ++i) {
    const Word* word = reinterpret_cast<const Word*>(from) + i;
    words[i] = kUse == Use::kOnce ? load_passing(word) : __ldg(word);
  }
  Vector values;
  memcpy(&values, words, sizeof(Vector));
  return values;
}

// The same from what this thread alone writes while the kernel runs.
template <typename Access, typename T>
__device__ __forceinline__ typename Access::template Vector<T> load_own(const T* from) {
  using Vector = typename Access::template Vector<T>;
  using Word = word_t<alignof(Vector)>;
  Word words[sizeof(Vector) / sizeof(Word)];
#pragma unroll
  for (int i = 0; i < static_cast<int>(sizeof(Vector) / sizeof(Word)); ++i) {
    words[i] = reinterpret_cast<const Word*>(from)[i];
  }
  Vector values;
  memcpy(&values, words, sizeof(Vector));
  return values;
}

// One instruction: the compiler splits an assignment into its elements. No kernel reads what it stores like this.
template <Use kUse>
__device__ __forceinline__ void store_word(uint4* to, const uint4& word) {
#if defined(APEM_FAST_EMULATOR)
  *to = word;
#else
  if constexpr (kUse == Use::kOnce) {
    asm volatile("st.global.cs.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w));
  } else {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z),
                 "r"(word.w));
  }
#endif
}

template <typename Access, Use kUse = Use::kAgain, typename T>
__device__ __forceinline__ void store(T* to, const typename Access::template Vector<T>& values) {
  if constexpr (Access::kElements == 1) {
    *to = values[0];
  } else {
    constexpr int kWords = sizeof(values) / kAccessBytes;
    static_assert(kWords * kAccessBytes == sizeof(values), "what is stored is never narrower than `Narrowest`");
    uint4 words[kWords];
    memcpy(words, &values, sizeof(values));
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      store_word<kUse>(reinterpret_cast<uint4*>(to) + i, words[i]);
    }
  }
}

// Whether rows of `row` elements can be read from every one of these pointers by packs of `elements`. A tensor that
// starts inside a larger one may not lie on a boundary; one that is smaller than a pack has none.
template <typename... T>
bool fits_vectors(int elements, int64_t row, const T*... pointers) {
  const auto aligned = [&](const void* pointer, size_t size) {
    return reinterpret_cast<uintptr_t>(pointer) % std::min<size_t>(kAccessBytes, size * elements) == 0;
  };
  return row % elements == 0 && (aligned(pointers, sizeof(T)) && ...);
}

}  // namespace apem_fast
