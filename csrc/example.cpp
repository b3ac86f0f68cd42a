// A C++ program that uses an operator: it loads the library by linking to it and calls through the dispatcher, so the
// same lines serve CPU and CUDA tensors. Also a test: it ends with 0 if the answer is right.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <limits>

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Two rays and three epsilons: at which does each ray's prediction stop being its label?
int main() {
  Tensor predicted = torch::stable::empty({2, 3}, ScalarType::Long);
  Tensor labels = torch::stable::empty({2}, ScalarType::Long);
  Tensor epsilon = torch::stable::empty({3}, ScalarType::Double);
  const int64_t predictions[] = {7, 7, 4, /**/ 5, 5, 5}, own[] = {7, 5};
  const double steps[] = {1, 2, 3};
  std::copy(std::begin(predictions), std::end(predictions), static_cast<int64_t*>(predicted.mutable_data_ptr()));
  std::copy(std::begin(own), std::end(own), static_cast<int64_t*>(labels.mutable_data_ptr()));
  std::copy(std::begin(steps), std::end(steps), static_cast<double*>(epsilon.mutable_data_ptr()));

  std::array<StableIValue, 3> stack{torch::stable::detail::from(predicted), torch::stable::detail::from(labels),
                                    torch::stable::detail::from(epsilon)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("apem_fast::first_flip", "", stack.data(), TORCH_TARGET_VERSION));
  const Tensor flips = torch::stable::detail::to<Tensor>(stack[0]);
  const double* flip = static_cast<const double*>(flips.const_data_ptr());
  std::printf("the first ray flips at epsilon %g, the second at %g\n", flip[0], flip[1]);
  return flip[0] == 3 && flip[1] == std::numeric_limits<double>::infinity() ? 0 : 1;
}
