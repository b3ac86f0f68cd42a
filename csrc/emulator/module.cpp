// Hands the emulated kernels to Python. Linked with the bindings in cuda/*.cu, compiled as C++ with APEM_FAST_EMULATOR:
// importing it registers torch.ops.apem_fast_emulated.*, for CPU tensors, so that the bindings are tested too. The
// schemas are those of apem_fast (python_tests/emulated.py). Never installed.

#include "execution.h"

#include <pybind11/pybind11.h>

PYBIND11_MODULE(apem_fast_emulator, m) {
  using apem_fast::Limits;
  m.def(
      "set_grid_limit",
      [](int64_t x, int64_t yz) {
        Limits::most_x = x;
        Limits::most_yz = yz;
      },
      pybind11::arg("x"), pybind11::arg("yz"), "The most blocks that a grid may have in each dimension.");
  m.def("grid_limit", [] { return pybind11::make_tuple(Limits::most_x, Limits::most_yz); });
}
