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
#if defined(__CUDA_ARCH__)
    return static_cast<A>(max(-1, min(1, static_cast<int>(gradient))));  // half the instructions
#else
    return static_cast<A>((gradient > 0) - (gradient < 0));  // vectors; four times as fast as the other on a CPU
#endif
  } else {
    const arithmetic_t<G> value = static_cast<arithmetic_t<G>>(gradient);
    return value > 0 ? A(1) : value < 0 ? A(-1) : A(0);
  }
}

// value * sign_of(gradient), to the bit.
template <typename A, typename G>
APEM_FAST_HOST_DEVICE A with_sign_of(A value, G gradient) {
#if defined(__CUDA_ARCH__) || defined(APEM_FAST_EMULATOR)
  if constexpr (std::is_same_v<G, int8_t> && std::is_same_v<A, float>) {
    // Without a conversion, which a multiprocessor starts at a quarter of the rate of others. The product with 0 is
    // NaN where the value is none or infinite; it is the same for all the channels that share the value.
    const uint32_t sign = static_cast<uint32_t>(static_cast<int>(gradient)) & 0x80000000u;
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    bits ^= sign;
    A flipped;
    memcpy(&flipped, &bits, sizeof(bits));
    return gradient == 0 ? value * A(0) : flipped;
  }
#endif
  return value * sign_of<A>(gradient);
}

// What is applied: the map, or its inverse where the irrelevance is asked for.
template <typename A>
APEM_FAST_HOST_DEVICE A applied_relevance(A relevance, bool irrelevance) {
  return irrelevance ? A(1) - relevance : relevance;
}

// The same for a probe, whose map is filtered up to its level first. Nothing is at most NaN: no filter.
template <typename A>
APEM_FAST_HOST_DEVICE A probe_relevance(A relevance, A level, bool irrelevance) {
  return applied_relevance(relevance <= level ? A(0) : relevance, irrelevance);
}

template <typename A>
constexpr A kNoLevel = std::numeric_limits<A>::quiet_NaN();

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

// The gradient of v in d = v / sum|v| * s: (s g - sign(v) * sum(g d)) / sum|v|. `directed_grad` is s g, summed in order
// over the `repeats` channels that share v; `along` is the image's sum(g d).
template <typename A>
APEM_FAST_HOST_DEVICE A relevance_gradient(A directed_grad, A relevance, A along, A repeats, A norm, bool irrelevance) {
  const A grad = (directed_grad - sign_of<A>(relevance) * along * repeats) / norm;
  return irrelevance ? -grad : grad;
}

// The gradient that a bound lets through: none where it was active, all of it where the value is NaN.
template <typename A>
APEM_FAST_HOST_DEVICE A passed_gradient(A gradient, A value, A lower, A upper) {
  return value < lower || value > upper ? A(0) : gradient;
}

// -- label_margin -------------------------------------------------------------------------------------------------

template <typename A>
APEM_FAST_HOST_DEVICE bool is_missing(A value) {
  return value != value;
}

// The greatest value seen so far and where: the lowest index among equals, whatever the order of the updates.
template <typename A>
struct Greatest {
  A value;
  int64_t index;
};

template <typename A>
APEM_FAST_HOST_DEVICE Greatest<A> nothing_seen() {
  return {-std::numeric_limits<A>::infinity(), std::numeric_limits<int64_t>::max()};
}

// A NaN counts as the greatest of all, as in torch.argmax.
template <typename A>
APEM_FAST_HOST_DEVICE Greatest<A> greater_of(Greatest<A> a, Greatest<A> b) {
  const bool a_missing = is_missing(a.value), b_missing = is_missing(b.value);
  const bool equal = (a_missing && b_missing) || a.value == b.value;
  const bool b_wins = equal ? b.index < a.index : b_missing || b.value > a.value;
  return b_wins ? b : a;
}

// What one pass over a row of logits gathers. Start from `no_logits`, add each logit, merge in any order.
template <typename A>
struct MarginState {
  Greatest<A> any;    // the prediction
  Greatest<A> other;  // the best class that is not the label; here a NaN counts as infinity
};

template <typename A>
APEM_FAST_HOST_DEVICE MarginState<A> no_logits() {
  return {nothing_seen<A>(), nothing_seen<A>()};
}

template <typename A>
APEM_FAST_HOST_DEVICE MarginState<A> merged(const MarginState<A>& a, const MarginState<A>& b) {
  return {greater_of(a.any, b.any), greater_of(a.other, b.other)};
}

template <typename A>
APEM_FAST_HOST_DEVICE MarginState<A> with_logit(const MarginState<A>& state, A logit, int64_t index, int64_t label) {
  const A counted = is_missing(logit) ? std::numeric_limits<A>::infinity() : logit;
  const Greatest<A> other = index == label ? nothing_seen<A>() : Greatest<A>{counted, index};
  return merged(state, MarginState<A>{{logit, index}, other});
}

// with_logit() for a logit that comes behind all those of the state: cheaper, because a tie leaves the state as it is.
// A logit of -infinity is not noted: where nothing else was seen, the index is nothing_seen()'s.
template <typename A>
APEM_FAST_HOST_DEVICE MarginState<A> with_later_logit(MarginState<A> state, A logit, int64_t index, int64_t label) {
  const bool missing = is_missing(logit);
  const A counted = missing ? std::numeric_limits<A>::infinity() : logit;
  if (logit > state.any.value || (missing && !is_missing(state.any.value))) {
    state.any = {logit, index};
  }
  if (counted > state.other.value && index != label) {
    state.other = {counted, index};
  }
  return state;
}

// Indices for a row of nothing but -infinity, or with nothing else beside its label.
template <typename A>
APEM_FAST_HOST_DEVICE MarginState<A> with_indices(MarginState<A> state, int64_t label) {
  const int64_t none = nothing_seen<A>().index;
  state.any.index = state.any.index == none ? 0 : state.any.index;
  state.other.index = state.other.index == none ? label == 0 : state.other.index;
  return state;
}

template <typename A>
APEM_FAST_HOST_DEVICE A margin_of(const MarginState<A>& state, A label_logit) {
  return is_missing(state.any.value) ? state.any.value : label_logit - state.other.value;
}

// -- first_flip ---------------------------------------------------------------------------------------------------

// What one prediction says of its ray; no flip is infinity.
template <typename E>
APEM_FAST_HOST_DEVICE E flip_epsilon(int64_t predicted, int64_t label, E epsilon) {
  return predicted != label ? epsilon : std::numeric_limits<E>::infinity();
}

// The lesser of the two; NaN if either is, as in torch.amin.
template <typename E>
APEM_FAST_HOST_DEVICE E earlier_flip(E a, E b) {
  return is_missing(a) || a < b ? a : b;
}

// -- relevance_map: the percentile by radix selection -------------------------------------------------------------

// Magnitudes as unsigned integers of the same order: the bits without the sign. NaN comes after infinity.
template <typename T>
using magnitude_key_t =
    std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;

template <typename T>
APEM_FAST_HOST_DEVICE magnitude_key_t<T> magnitude_key(T value) {
  using Key = magnitude_key_t<T>;
  Key key;
  memcpy(&key, &value, sizeof(T));
  return static_cast<Key>(key & (static_cast<Key>(~Key(0)) >> 1));
}

template <typename T>
APEM_FAST_HOST_DEVICE T value_of_key(magnitude_key_t<T> key) {
  T value;
  memcpy(&value, &key, sizeof(T));
  return value;
}

template <typename T>
APEM_FAST_HOST_DEVICE bool is_missing_key(magnitude_key_t<T> key) {
  return key > magnitude_key(static_cast<T>(std::numeric_limits<float>::infinity()));
}

// Keys are told apart by digits of at most this many bits, the highest first. A pass counts the digits of the keys
// whose higher digits were settled by the passes before.
constexpr int kDigitBits = 11;

template <typename T>
constexpr int kKeyBits = static_cast<int>(sizeof(T)) * 8 - 1;  // the sign is gone

// The lowest bit of the digit that follows the one at `shift`; the first digit is at next_shift(kKeyBits<T>).
constexpr APEM_FAST_HOST_DEVICE int next_shift(int shift) { return shift > kDigitBits ? shift - kDigitBits : 0; }

template <typename Key>
APEM_FAST_HOST_DEVICE int digit_at(Key key, int shift, int bits) {
  return static_cast<int>((key >> shift) & ((Key(1) << bits) - 1));
}

// The digit that holds the value of a rank, and that value's rank among the keys with this digit.
struct Digit {
  int digit;
  int64_t rank;
};

template <typename Count>
APEM_FAST_HOST_DEVICE Digit digit_of_rank(const Count* histogram, int digits, int64_t rank) {
  int digit = 0;
  while (digit + 1 < digits && rank >= static_cast<int64_t>(histogram[digit])) {
    rank -= static_cast<int64_t>(histogram[digit++]);
  }
  return {digit, rank};
}

// Where a percentile lies among `count` sorted values: between the ranks `below` and `above`, as in numpy.percentile.
struct PercentilePosition {
  int64_t below, above;
  double fraction;
};

APEM_FAST_HOST_DEVICE PercentilePosition percentile_position(double percentile, int64_t count) {
  const double position = percentile / 100 * static_cast<double>(count - 1);
  const int64_t last = count - 1, whole = static_cast<int64_t>(position);
  const int64_t below = whole < last ? whole : last;
  return {below, below < last ? below + 1 : last, position - static_cast<double>(below)};
}

template <typename A>
APEM_FAST_HOST_DEVICE A interpolated(A low, A high, double fraction) {
  const double from = static_cast<double>(low), to = static_cast<double>(high);
  return fraction == 0 ? low : static_cast<A>(from + (to - from) * fraction);
}

// -- relevance_map: clipping, product, rescaling ------------------------------------------------------------------

// |attribution| clipped at `limit`; NaN if either is, as in torch.minimum. No clipping: a limit of infinity.
template <typename A>
APEM_FAST_HOST_DEVICE A clipped_magnitude(A attribution, A limit) {
  const A magnitude = attribution < 0 ? -attribution : attribution;
  return magnitude > limit || is_missing(limit) ? limit : magnitude;
}

// The least and the greatest value of a map, and whether any is NaN. Start from `no_values`; merge in any order.
template <typename A>
struct Extent {
  A low, high;
  bool missing;
};

template <typename A>
APEM_FAST_HOST_DEVICE Extent<A> no_values() {
  return {std::numeric_limits<A>::infinity(), -std::numeric_limits<A>::infinity(), false};
}

template <typename A>
APEM_FAST_HOST_DEVICE Extent<A> merged(const Extent<A>& a, const Extent<A>& b) {
  return {a.low < b.low ? a.low : b.low, a.high > b.high ? a.high : b.high, a.missing || b.missing};
}

template <typename A>
APEM_FAST_HOST_DEVICE Extent<A> with_value(const Extent<A>& extent, A value) {
  return merged(extent, Extent<A>{value < extent.low ? value : extent.low, value > extent.high ? value : extent.high,
                                  is_missing(value)});
}

// To [0, 1]. A map without contrast ranks no pixel above another: 0 where it is 0 throughout, else one half.
template <typename A>
APEM_FAST_HOST_DEVICE A rescaled(A value, const Extent<A>& extent) {
  if (extent.missing) {
    return std::numeric_limits<A>::quiet_NaN();
  }
  if (extent.high == extent.low) {
    return extent.low == 0 ? A(0) : A(0.5);
  }
  return (value - extent.low) / (extent.high - extent.low);
}

// -- attack_penalty, attack_step, saliency_map ---------------------------------------------------------------------

// The terms of a penalty, of an image or a part of it: `squared` is a sum until `mean_squared` divides it.
struct PenaltyTerms {
  double variation, changed, squared;
};

APEM_FAST_HOST_DEVICE PenaltyTerms operator+(const PenaltyTerms& a, const PenaltyTerms& b) {
  return {a.variation + b.variation, a.changed + b.changed, a.squared + b.squared};
}

APEM_FAST_HOST_DEVICE PenaltyTerms mean_squared(const PenaltyTerms& sum, int64_t values) {
  return {sum.variation, sum.changed, sum.squared / static_cast<double>(values > 0 ? values : 1)};
}

APEM_FAST_HOST_DEVICE double penalty_of(const PenaltyTerms& terms, double tv, double zero, double diff) {
  return tv * terms.variation + zero * terms.changed + diff * terms.squared;
}

// What the backward of a penalty multiplies the signs of the variation and the perturbation with.
template <typename A>
APEM_FAST_HOST_DEVICE A variation_weight(double grad_penalty, double tv) {
  return static_cast<A>(grad_penalty * tv);
}

template <typename A>
APEM_FAST_HOST_DEVICE A squared_weight(double grad_penalty, double diff, int64_t values) {
  return static_cast<A>(grad_penalty * (2 * diff / static_cast<double>(values)));
}

// The derivative of a penalty at a value: `signs` is that of the total variation, `perturbation` that of the square.
template <typename A>
APEM_FAST_HOST_DEVICE A penalty_gradient(A variation, A signs, A squared, A perturbation) {
  return variation * signs + squared * perturbation;
}

// What one step of an attack takes away from a value; `damped` is damping * the previous gradient, or 0.
template <typename A>
APEM_FAST_HOST_DEVICE A attack_stepped(A value, A step_size, A gradient, A damped) {
  return value - (step_size * gradient + damped);
}

}  // namespace apem_fast
