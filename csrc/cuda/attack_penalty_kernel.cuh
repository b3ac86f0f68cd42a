// attack_penalty and its backward on CUDA. The terms are summed in float64, chunk by chunk, while every pixel is looked
// at once with the neighbours below and on its right, which a thread nearby reads too: they come from a cache. A
// pixel on a border reads itself in the place of a neighbour, so that every load is under way before the first is
// looked at. The chunks are added up by a kernel of one thread for each image.
#pragma once

#include "chunks.cuh"
#include "pixels.cuh"
#include "reduction.cuh"

namespace apem_fast {

template <typename T>
struct AttackPenaltyArguments {
  const T* perturbed;  // [N, cover.image_size()], as original
  const T* original;
  PenaltyTerms* chunk_terms;  // [N, chunks], written and read
  PenaltyTerms* terms;        // [N]
  double* penalty;            // [N]
  int64_t N, chunks, width;
  Cover cover;
  double tv, zero, diff;
};

// What lies beside value k of a pack, which begins after the pixel `before` and ends before the pixel `after`.
template <Walk kWalk, typename Own, typename Beside>
__device__ __forceinline__ auto right_of(int k, const Own& own, const Beside& after) {
  constexpr int kLast = Own::kCount - kTogether<kWalk>;
  return k < kLast ? own[k < kLast ? k + kTogether<kWalk> : 0] : after[k < kLast ? 0 : k - kLast];
}

template <Walk kWalk, typename Own, typename Beside>
__device__ __forceinline__ auto left_of(int k, const Own& own, const Beside& before) {
  constexpr int kFirst = kTogether<kWalk>;
  return k < kFirst ? before[k < kFirst ? k : 0] : own[k < kFirst ? 0 : k - kFirst];
}

template <typename Access, Walk kWalk, typename T>
__global__ void __launch_bounds__(Access::kBlock, Access::kBlocksOf128)
    attack_penalty_kernel(AttackPenaltyArguments<T> a) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements, kValues = Pixels<Access, kWalk, A>::kCount;
  const int64_t height = a.width > 0 ? a.cover.pixels / a.width : 0;
  const int64_t pixel_stride = kWalk == Walk::kPlanes ? 1 : a.cover.pixel_stride();
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    const T *perturbed = a.perturbed + n * a.cover.image_size(), *original = a.original + n * a.cover.image_size();
    for (int64_t chunk = blockIdx.x; chunk < a.chunks; chunk += gridDim.x) {
      PenaltyTerms sum{0, 0, 0};
      visit_chunk<Access::kBlock>(a.cover.pixels / kElements, a.chunks, chunk, [&](int64_t item) {
        const int64_t pixel = item * kElements, row = pixel / a.width, column = pixel - row * a.width;
        Pack<bool, kElements> changed{};
        for (int64_t group = 0; group < groups_of<kWalk>(a.cover); ++group) {
          const int64_t offset = offset_of<kWalk>(a.cover, pixel, group);
          const int64_t down = row + 1 < height ? offset + a.width * pixel_stride : offset;
          const int64_t on = column + kElements < a.width ? offset + kElements * pixel_stride : offset;
          const auto own = load_differences<Access, kWalk, A>(perturbed + offset, original + offset);
          const auto below = load_differences<Access, kWalk, A>(perturbed + down, original + down);
          const auto after = load_differences<Single<Access, T>, kWalk, A>(perturbed + on, original + on);
#pragma unroll
          for (int k = 0; k < kValues; ++k) {
            const int i = k / kTogether<kWalk>;
            changed[i] = changed[i] || own[k] != A(0);
            sum.squared += static_cast<double>(own[k] * own[k]);
            const double variation = static_cast<double>(std::abs(own[k] - below[k])) +
                                     static_cast<double>(std::abs(own[k] - right_of<kWalk>(k, own, after)));
            sum.variation += row + 1 < height && column + i + 1 < a.width ? variation : 0;
          }
        }
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          sum.changed += changed[i] ? 1 : 0;
        }
      });
      sum = block_reduce<Access::kBlock>(sum, [](const PenaltyTerms& x, const PenaltyTerms& y) { return x + y; });
      if (threadIdx.x == 0) {
        a.chunk_terms[n * a.chunks + chunk] = sum;
      }
    }
  }
}

template <int kBlock, typename T>
__global__ void __launch_bounds__(kBlock) total_penalty_kernel(AttackPenaltyArguments<T> a) {
  for (int64_t n = int64_t{blockIdx.x} * kBlock + threadIdx.x; n < a.N; n += int64_t{gridDim.x} * kBlock) {
    PenaltyTerms sum{0, 0, 0};
#pragma unroll 8
    for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
      sum = sum + a.chunk_terms[n * a.chunks + chunk];
    }
    sum = mean_squared(sum, a.cover.image_size());
    a.terms[n] = sum;
    a.penalty[n] = penalty_of(sum, a.tv, a.zero, a.diff);
  }
}

template <int kBlock = 256, typename T>
void launch_attack_penalty(const AttackPenaltyArguments<T>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access, auto walk) {
    launch(attack_penalty_kernel<decltype(access), walk(), T>, arguments.chunks, arguments.N, 1, kBlock, stream,
           arguments);
  };
  choose_pixels<T, kBlock>(arguments.cover, arguments.width, run, arguments.perturbed, arguments.original);
  launch(total_penalty_kernel<kBlock, T>, ceil_div(arguments.N, kBlock), 1, 1, kBlock, stream, arguments);
}

template <typename T>
struct AttackPenaltyBackwardArguments {
  const double* grad_penalty;  // [N]
  const T* perturbed;          // [N, cover.image_size()], as the two below
  const T* original;
  T* grad_perturbed;
  int64_t N, width;
  Cover cover;
  double tv, diff;
};

template <typename Access, Walk kWalk, typename T>
__global__ void __launch_bounds__(Access::kBlock, Pixels<Access, kWalk, T>::kCount > 12 ? 1 : Access::kBlocksOf128)
    attack_penalty_backward_kernel(AttackPenaltyBackwardArguments<T> a) {
  using A = arithmetic_t<T>;
  constexpr int kElements = Access::kElements, kValues = Pixels<Access, kWalk, A>::kCount;
  const int64_t height = a.cover.pixels / a.width, size = a.cover.image_size();
  const int64_t pixel_stride = kWalk == Walk::kPlanes ? 1 : a.cover.pixel_stride(), next_row = a.width * pixel_stride;
  for (int64_t n = blockIdx.y; n < a.N; n += gridDim.y) {
    const T *perturbed = a.perturbed + n * size, *original = a.original + n * size;
    const A variation = variation_weight<A>(a.grad_penalty[n], a.tv);
    const A squared = squared_weight<A>(a.grad_penalty[n], a.diff, size);
    for (int64_t item = int64_t{blockIdx.x} * Access::kBlock + threadIdx.x; item < a.cover.pixels / kElements;
         item += int64_t{gridDim.x} * Access::kBlock) {
      const int64_t pixel = item * kElements, row = pixel / a.width, column = pixel - row * a.width;
      for (int64_t group = 0; group < groups_of<kWalk>(a.cover); ++group) {
        const int64_t offset = offset_of<kWalk>(a.cover, pixel, group);
        const auto own = load_differences<Access, kWalk, A>(perturbed + offset, original + offset);
        const int64_t down = row + 1 < height ? offset + next_row : offset, up = row > 0 ? offset - next_row : offset;
        const int64_t on = column + kElements < a.width ? offset + kElements * pixel_stride : offset;
        const int64_t back = column > 0 ? offset - pixel_stride : offset;
        const auto below = load_differences<Access, kWalk, A>(perturbed + down, original + down);
        const auto above = load_differences<Access, kWalk, A>(perturbed + up, original + up);
        const auto before = load_differences<Single<Access, T>, kWalk, A>(perturbed + back, original + back);
        const auto after = load_differences<Single<Access, T>, kWalk, A>(perturbed + on, original + on);
        Pixels<Access, kWalk, T> result;
#pragma unroll
        for (int k = 0; k < kValues; ++k) {
          const bool not_last_row = row + 1 < height, not_last_column = column + k / kTogether<kWalk> + 1 < a.width;
          A signs = 0;
          if (not_last_row && not_last_column) {
            signs = sign_of<A>(own[k] - below[k]) + sign_of<A>(own[k] - right_of<kWalk>(k, own, after));
          }
          if (not_last_row && column + k / kTogether<kWalk> > 0) {
            signs -= sign_of<A>(left_of<kWalk>(k, own, before) - own[k]);
          }
          if (row > 0 && not_last_column) {
            signs -= sign_of<A>(above[k] - own[k]);
          }
          result[k] = static_cast<T>(penalty_gradient(variation, signs, squared, own[k]));
        }
        store_pixels<Access, kWalk>(a.grad_perturbed + n * size + offset, result);
      }
    }
  }
}

template <int kBlock = 256, typename T>
void launch_attack_penalty_backward(const AttackPenaltyBackwardArguments<T>& arguments, cudaStream_t stream) {
  const auto run = [&](auto access, auto walk) {
    using Access = decltype(access);
    launch(attack_penalty_backward_kernel<Access, walk(), T>,
           ceil_div(arguments.cover.pixels / Access::kElements, kBlock), arguments.N, 1, kBlock, stream, arguments);
  };
  choose_pixels<T, kBlock>(arguments.cover, arguments.width, run, arguments.perturbed, arguments.original,
                           arguments.grad_perturbed);
}

}  // namespace apem_fast
