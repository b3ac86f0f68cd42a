// How the operators are registered with torch: once in a process, however many libraries that hold them are loaded
// (the Python package's, a C++ program's), and so that none of them ever drops a derivative in silence.
//
// Derivatives, and what else torch.func does, come from `import apem_fast` in Python or <apem_fast/operators.h> in C++.
// A library that is loaded alone has neither; then its kernels refuse inputs that need them.
#pragma once

#include "compat.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <atomic>
#include <optional>
#include <type_traits>
#include <utility>

namespace apem_fast {

// Whether this library's kernels may trust that derivatives were seen to before they were called.
#if defined(APEM_FAST_EMULATOR)
inline std::atomic<bool> derivatives_elsewhere{true};
#else
inline std::atomic<bool> derivatives_elsewhere{false};
#endif

// Whether `define` could define its operators; if not, they are in the process already, and those serve.
inline bool defined(torch::stable::detail::StableLibrary& library,
                    void (*define)(torch::stable::detail::StableLibrary&)) {
  try {
    define(library);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

// Whether the schemas in this process are this library's: if not, neither its kernels nor its fakes are registered.
bool schemas_are_ours();

// The same for the CUDA kernels, which may be in a library of their own.
bool cuda_kernels_are_ours();

inline void refuse_derivative(const char* op, const Tensor& tensor) {
  std::array<StableIValue, 2> dual{torch::stable::detail::from(tensor), torch::stable::detail::from(int64_t{0})};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_unpack_dual", "", dual.data(), TORCH_ABI_VERSION));
  const Tensor primal = torch::stable::detail::to<Tensor>(dual[0]);
  const Tensor tangent = torch::stable::detail::to<Tensor>(dual[1]);
  std::array<StableIValue, 1> leaf{torch::stable::detail::from(primal)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::is_leaf", "", leaf.data(), TORCH_ABI_VERSION));
  // A view of the input: it is a leaf of no graph, unless gradients are being recorded for the input.
  if (tangent.defined() || !torch::stable::detail::to<bool>(leaf[0])) {
    throw std::runtime_error(std::string(op) +
                             ": the library alone has no derivatives; import apem_fast (in C++ include "
                             "<apem_fast/operators.h>), or detach the inputs");
  }
}

inline void refuse_derivative(const char* op, const std::optional<Tensor>& tensor) {
  if (tensor) {
    refuse_derivative(op, *tensor);
  }
}

template <typename NotATensor>
void refuse_derivative(const char*, const NotATensor&) {}

template <typename Name, auto function>
struct Guarded;

template <typename Name, typename Result, typename... Arguments, Result (*function)(Arguments...)>
struct Guarded<Name, function> {
  static Result call(Arguments... arguments) {
    // Without gradients being recorded nothing is lost; nor is it where something above recorded them itself.
    if (!derivatives_elsewhere.load(std::memory_order_relaxed) && aoti_torch_grad_mode_is_enabled()) {
      (refuse_derivative(Name::get(), arguments), ...);
    }
    return function(std::forward<Arguments>(arguments)...);
  }
};

}  // namespace apem_fast

// Registers the function `op` as this device's kernel of the operator of that name.
#define APEM_FAST_KERNEL(m, op)                                       \
  do {                                                                \
    struct Name {                                                     \
      static const char* get() { return #op; }                        \
    };                                                                \
    m.impl(#op, TORCH_BOX((&::apem_fast::Guarded<Name, &op>::call))); \
  } while (false)

#define APEM_FAST_CPU_LIBRARY(m)                                    \
  static void cpu_kernels(torch::stable::detail::StableLibrary& m); \
  STABLE_TORCH_LIBRARY_IMPL(apem_fast, CPU, library) {              \
    if (::apem_fast::schemas_are_ours()) {                          \
      cpu_kernels(library);                                         \
    }                                                               \
  }                                                                 \
  static void cpu_kernels(torch::stable::detail::StableLibrary& m)
