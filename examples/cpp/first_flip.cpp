// Two rays and three epsilons: at which does each ray's prediction stop being its label?

#include <apem_fast/operators.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <limits>

using apem_fast::ScalarType;
using apem_fast::Tensor;

template <typename T, size_t count>
Tensor tensor(const T (&values)[count], std::initializer_list<int64_t> shape, ScalarType dtype) {
  Tensor result = torch::stable::empty(shape, dtype);
  std::copy(std::begin(values), std::end(values), static_cast<T*>(result.mutable_data_ptr()));
  return result;
}

int main() {
  const int64_t predictions[] = {7, 7, 4, /**/ 5, 5, 5}, own[] = {7, 5};
  const double steps[] = {1, 2, 3};
  const Tensor flips =
      apem_fast::first_flip(tensor(predictions, {2, 3}, ScalarType::Long), tensor(own, {2}, ScalarType::Long),
                            tensor(steps, {3}, ScalarType::Double));
  const double* flip = static_cast<const double*>(flips.const_data_ptr());
  std::printf("the first ray flips at epsilon %g, the second at %g\n", flip[0], flip[1]);
  return flip[0] == 3 && flip[1] == std::numeric_limits<double>::infinity() ? 0 : 1;
}
