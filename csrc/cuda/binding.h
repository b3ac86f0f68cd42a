// What every binding of a CUDA kernel needs of torch: the inputs' device made current, the caller's stream on it, and
// an error if a launch was refused. In the emulator there is nothing to choose and nothing that can fail.
#pragma once

#include "../checks.h"
#include "../registration.h"
#include "platform.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

#if defined(APEM_FAST_EMULATOR)
// The same operators under another name, on CPU tensors, with few threads per block.
#define APEM_FAST_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(apem_fast_emulated, CPU, m)
#define APEM_FAST_BLOCK <64>
#else
#define APEM_FAST_CUDA_LIBRARY(m)                                    \
  static void cuda_kernels(torch::stable::detail::StableLibrary& m); \
  STABLE_TORCH_LIBRARY_IMPL(apem_fast, CUDA, library) {              \
    if (::apem_fast::cuda_kernels_are_ours()) {                      \
      cuda_kernels(library);                                         \
    }                                                                \
  }                                                                  \
  static void cuda_kernels(torch::stable::detail::StableLibrary& m)
#define APEM_FAST_BLOCK <>
#endif

namespace apem_fast {

#if defined(APEM_FAST_EMULATOR)
struct OnDeviceOf {
  explicit OnDeviceOf(const Tensor&) {}
  cudaStream_t stream = nullptr;
  void check_launches() const {}
};
#else
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* current = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &current));
    stream = static_cast<cudaStream_t>(current);
  }

  void check_launches() const { STD_CUDA_KERNEL_LAUNCH_CHECK(); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;

 public:
  cudaStream_t stream = nullptr;
};
#endif

}  // namespace apem_fast
