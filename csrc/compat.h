// The few helpers that libtorch's stable ABI lacks at target 2.11. Delete one when upstream has it.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace apem_fast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Compiles a loop several times and picks the widest vectors that the running machine has. With contraction off
// (setup.py) every version rounds alike, which is tested by builds with one alone: APEM_FAST_VECTORS, say avx2.
#define APEM_FAST_QUOTED(text) #text
#define APEM_FAST_TARGET(name) __attribute__((target(APEM_FAST_QUOTED(name))))
#ifdef APEM_FAST_VECTORS
#define APEM_FAST_VECTOR_VERSIONS APEM_FAST_TARGET(APEM_FAST_VECTORS)
#elif defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__) && !defined(__CUDACC__)
#define APEM_FAST_VECTOR_VERSIONS __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define APEM_FAST_VECTOR_VERSIONS
#endif

// The name that Python gives a dtype.
inline std::string name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return torch::headeronly::toString(dtype);
  }
}

inline std::string name_of(const torch::stable::Device& device) {
  const std::string type = device.is_cpu() ? "cpu" : device.is_cuda() ? "cuda" : "another device";
  return device.has_index() ? type + ":" + std::to_string(device.index()) : type;
}

inline std::string shape_of(const Tensor& tensor) {
  std::string shape = "(";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    shape += (d ? ", " : "") + std::to_string(tensor.size(d));
  }
  return shape + ")";
}

inline std::string strides_of(const Tensor& tensor) {
  std::string strides = "strides (";
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    strides += (d ? ", " : "") + std::to_string(tensor.stride(d));
  }
  return strides + ")";
}

// Where a tensor's values lie: the address of the first, and the one behind the last.
inline std::pair<uintptr_t, uintptr_t> bytes_of(const Tensor& tensor) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  int64_t elements = tensor.numel() == 0 ? 0 : 1;
  for (int64_t d = 0; elements > 0 && d < tensor.dim(); ++d) {
    elements += (tensor.size(d) - 1) * tensor.stride(d);
  }
  return {begin, begin + elements * tensor.element_size()};
}

inline bool is_channels_last(const Tensor& t) {  // [N, C, H, W]
  int64_t expected = 1;
  for (const int64_t d : {int64_t{1}, int64_t{3}, int64_t{2}, int64_t{0}}) {
    if (t.size(d) != 1 && t.stride(d) != expected) {
      return false;
    }
    expected *= t.size(d);
  }
  return true;
}

// Channels-last in gives channels-last out; anything else comes out contiguous.
inline MemoryFormat image_format(const Tensor& images) {
  return !images.is_contiguous() && is_channels_last(images) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty_image(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype,
                          MemoryFormat format) {
  return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt, format);
}

// Counts a write into `tensor` that autograd does not see, so that it refuses a backward pass which needs what was
// there before: any write of torch's own into a view does, and this one's is empty.
inline void count_as_written(Tensor tensor) {
  Tensor nothing = torch::stable::narrow(tensor, 0, 0, 0);
  torch::stable::zero_(nothing);
}

// Calls f with a value of the C++ type of a floating dtype; dtypes were checked before.
template <typename F>
void dispatch_floating(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Float) {
    f(float{});
  } else if (dtype == ScalarType::Double) {
    f(double{});
  } else if (dtype == ScalarType::Half) {
    f(Half{});
  } else {
    f(BFloat16{});
  }
}

// The same for a gradient, which is of the images' type T or already a sign.
template <typename T, typename F>
void dispatch_gradient(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Char) {
    f(int8_t{});
  } else {
    f(T{});
  }
}

template <typename T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <typename T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace apem_fast
