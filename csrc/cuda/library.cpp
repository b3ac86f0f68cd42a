// What the CUDA kernels bring with them: an operator that tells that they are in this process already.

#include "../registration.h"

namespace apem_fast {

static void define(torch::stable::detail::StableLibrary& m) { m.def("_python_serves_cuda() -> ()"); }

bool cuda_kernels_are_ours() {
  static torch::stable::detail::StableLibrary library(torch::stable::detail::StableLibrary::Kind::FRAGMENT, "apem_fast",
                                                      nullptr, __FILE__, __LINE__);
  static const bool ours = defined(library, define);
  return ours;
}

static void python_serves_cuda() { derivatives_elsewhere = true; }

STABLE_TORCH_LIBRARY_IMPL(apem_fast, CompositeExplicitAutograd, m) {
  if (cuda_kernels_are_ours()) {
    m.impl("_python_serves_cuda", TORCH_BOX(&python_serves_cuda));
  }
}

}  // namespace apem_fast
