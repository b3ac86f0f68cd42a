// Where the CPU kernels write. A large output is fresh memory, and its first touch, page by page, takes several times
// as long as writing it: huge pages are asked for, where the system grants them on request.
#pragma once

#include "../compat.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace apem_fast {

inline void ask_for_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (begin < end) {
    (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a wish: refusal does no harm
  }
#endif
}

inline Tensor empty_output(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype,
                           MemoryFormat format) {
  Tensor out = empty_image(like, shape, dtype, format);
  ask_for_huge_pages(out.mutable_data_ptr(), out.numel() * static_cast<int64_t>(out.element_size()));
  return out;
}

}  // namespace apem_fast
