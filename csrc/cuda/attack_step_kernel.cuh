// attack_step on CUDA: one read of each input, one write. Where pixels are to be put back (the proximal zero force) the
// channels of a pixel are gone through twice, the second time from the cache.
#pragma once

#include "pixels.cuh"

namespace apem_fast {

template <typename T>
struct AttackStepArguments {
  const T* perturbed;  // [N, cover.image_size()], as gradient, previous, original and out
  const T* gradient;
  const T* previous;      // nullptr in the first step
  const T* original;      // nullptr where no pixel is put back
  const uint8_t* region;  // nullptr, or image n's at n * region_stride: a mask of its pixels or of its values
  T* out;
  int64_t N, region_stride;
  Cover cover;
  bool region_per_channel;
  double step_size, damping, lower, upper, threshold;
};

// Values that the step has moved, before any is put back.
template <typename Access, Walk kWalk, typename T>
__device__ __forceinline__ Pixels<Access, kWalk, arithmetic_t<T>> moved_pixels(const AttackStepArguments<T>& a,
                                                                               int64_t at,
                                                                               const Pixels<Access, kWalk, T>& value) {
  using A = arithmetic_t<T>;
  constexpr int kValues = Pixels<Access, kWalk, A>::kCount;
  const A step_size = static_cast<A>(a.step_size), damping = static_cast<A>(a.damping);
  const A lower = static_cast<A>(a.lower), upper = static_cast<A>(a.upper);
  const auto gradient = load_pixels<Access, kWalk>(a.gradient + at);
  Pixels<Access, kWalk, A> moved{};
  if (a.previous != nullptr) {
    const auto previous = load_pixels<Access, kWalk>(a.previous + at);
#pragma unroll
    for (int k = 0; k < kValues; ++k) {
      moved[k] = damping * static_cast<A>(previous[k]);
    }
  }
#pragma unroll
  for (int k = 0; k < kValues; ++k) {
    moved[k] = clamped(attack_stepped(static_cast<A>(value[k]), step_size, static_cast<A>(gradient[k]), moved[k]),
                       lower, upper);
  }
  return moved;
}

// A kernel of its own where pixels are put back: it needs more registers, as does a pack of three channels.
template <typename Access, Walk kWalk, bool kPutsBack, typename T>
__global__ void __launch_bounds__(Access::kBlock,
                                  kPutsBack || kTogether<kWalk> > 1 ? Access::kBlocksOf128 : Access::kBlocksOf64)
    attack_step_kernel(AttackStepArguments<T> a) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements, kValues = Pixels<Access, kWalk, A>::kCount;
  const A threshold = static_cast<A>(a.threshold);
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    const int64_t image = n * a.cover.image_size();
    for (int64_t item = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x; item < a.cover.pixels / kElements;
         item += int64_t{gridDim.x} * Access::kBlock) {
      const int64_t pixel = item * kElements;
      Pack<A, kElements> squared{};
      if constexpr (kPutsBack) {
        visit_each(groups_of<kWalk>(a.cover), [&](int64_t group) {
          const int64_t at = image + offset_of<kWalk>(a.cover, pixel, group);
          const auto start = load_pixels<Access, kWalk>(a.original + at);
          const auto moved = moved_pixels<Access, kWalk>(a, at, load_pixels<Access, kWalk>(a.perturbed + at));
#pragma unroll
          for (int k = 0; k < kValues; ++k) {
            const A perturbation = moved[k] - static_cast<A>(start[k]);
            squared[k / kTogether<kWalk>] += perturbation * perturbation;
          }
        });
      }
      Pack<uint8_t, kElements> pixel_inside;
      if (a.region != nullptr && !a.region_per_channel) {
        pixel_inside = load<Access>(a.region + n * a.region_stride + pixel);
      }
      visit_each(groups_of<kWalk>(a.cover), [&](int64_t group) {
        const int64_t offset = offset_of<kWalk>(a.cover, pixel, group), at = image + offset;
        const auto value = load_pixels<Access, kWalk>(a.perturbed + at);
        const auto moved = moved_pixels<Access, kWalk>(a, at, value);
        Pixels<Access, kWalk, T> result;
#pragma unroll
        for (int k = 0; k < kValues; ++k) {
          result[k] = static_cast<T>(moved[k]);
        }
        if constexpr (kPutsBack) {
          const auto start = load_pixels<Access, kWalk>(a.original + at);
#pragma unroll
          for (int k = 0; k < kValues; ++k) {
            result[k] = squared[k / kTogether<kWalk>] <= threshold ? start[k] : result[k];
          }
        }
        if (a.region != nullptr && a.region_per_channel) {
          const auto inside = load_pixels<Access, kWalk>(a.region + n * a.region_stride + offset);
#pragma unroll
          for (int k = 0; k < kValues; ++k) {
            result[k] = inside[k] ? result[k] : value[k];
          }
        } else if (a.region != nullptr) {
#pragma unroll
          for (int k = 0; k < kValues; ++k) {
            result[k] = pixel_inside[k / kTogether<kWalk>] ? result[k] : value[k];
          }
        }
        store_pixels<Access, kWalk>(a.out + at, result);
      });
    }
  }
}

template <int kBlock = 256, typename T>
void launch_attack_step(const AttackStepArguments<T>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access, auto walk) {
    using Access = decltype(access);
    const auto kernel = arguments.original != nullptr ? attack_step_kernel<Access, walk(), true, T>
                                                      : attack_step_kernel<Access, walk(), false, T>;
    launch(kernel, ceil_div(arguments.cover.pixels / Access::kElements, kBlock), arguments.N, 1, kBlock, stream,
           arguments);
  };
  choose_pixels<T, kBlock>(arguments.cover, arguments.cover.pixels, run, arguments.perturbed, arguments.gradient,
                           arguments.previous, arguments.original, arguments.region, arguments.out);
}

}  // namespace apem_fast
