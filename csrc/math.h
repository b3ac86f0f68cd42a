// The arithmetic of each operator, for host and device, written once. No torch, so that the emulator can use it too.
//
// Nothing here may be fused into a multiply-add: host, device and the reference definition agree bit for bit
// (setup.py turns contraction off for both compilers).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__CUDACC__)
#define APEM_FAST_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define APEM_FAST_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace apem_fast {

// float64 is computed in float64, everything else in float32.
template <typename T>
using arithmetic_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// -- directed_relevance, perturb, perturb_probes ------------------------------------------------------------------

// -1, 0 or 1, as torch.sign: NaN gives 0.
template <typename A, typename G>
APEM_FAST_HOST_DEVICE A sign_of(G gradient) {
  if constexpr (std::is_same_v<G, int8_t>) {
    return static_cast<A>((gradient > 0) - (gradient < 0));
  } else {
    const arithmetic_t<G> value = static_cast<arithmetic_t<G>>(gradient);
    return static_cast<A>((value > 0) - (value < 0));
  }
}

// The value that a probe applies: the map filtered up to its level, then inverted where the irrelevance is asked for.
template <typename A>
APEM_FAST_HOST_DEVICE A probe_relevance(A relevance, A level, bool irrelevance) {
  const A kept = relevance <= level ? A(0) : relevance;
  return irrelevance ? A(1) - kept : kept;
}

template <typename A>
APEM_FAST_HOST_DEVICE A directed(A relevance, A norm, A sign) {
  return relevance / norm * sign;
}

template <typename A>
APEM_FAST_HOST_DEVICE A perturbed(A image, A epsilon, A direction) {
  return image + epsilon * direction;
}

// NaN passes through, as in torch.clamp. Without bounds, lower is -infinity and upper is infinity.
template <typename A>
APEM_FAST_HOST_DEVICE A clamped(A value, A lower, A upper) {
  const A raised = value < lower ? lower : value;
  return raised > upper ? upper : raised;
}

// -- attack_penalty, attack_step, saliency_map ---------------------------------------------------------------------

// What one step of an attack takes away from a value; `damped` is damping * the previous gradient, or 0.
template <typename A>
APEM_FAST_HOST_DEVICE A attack_stepped(A value, A step_size, A gradient, A damped) {
  return value - (step_size * gradient + damped);
}

// The derivative of a penalty at a value: `signs` is that of the total variation, `perturbation` that of the square.
template <typename A>
APEM_FAST_HOST_DEVICE A penalty_gradient(A variation, A signs, A squared, A perturbation) {
  return variation * signs + squared * perturbation;
}

// Without contrast, 0 where nothing changed and one half elsewhere.
template <typename A>
APEM_FAST_HOST_DEVICE A rescaled(A value, A low, A high) {
  if (high == low) {
    return low == A(0) ? A(0) : A(0.5);
  }
  return (value - low) / (high - low);
}

}  // namespace apem_fast
