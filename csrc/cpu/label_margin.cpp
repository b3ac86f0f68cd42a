// label_margin and probe_answers on the CPU: a vectorised search for the greatest value on either side of the label,
// then for its first position. Rows with a NaN take the definition's own path.

#include "tiles.h"

#include <vector>

namespace apem_fast {
namespace {

// The greatest of consecutive values, or of their magnitudes; NaN if any is.
template <typename A, bool kMagnitudes = false, typename T>
APEM_FAST_VECTOR_VERSIONS A greatest_value(const T* values, int64_t count) {
  A lane[kLanes];
  int missing[kLanes] = {};
  std::fill(lane, lane + kLanes, -std::numeric_limits<A>::infinity());
  const auto update = [&](int l, A raw) {
    const A value = kMagnitudes && raw < 0 ? -raw : raw;
    lane[l] = value > lane[l] ? value : lane[l];
    missing[l] |= is_missing(value);
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      update(l, static_cast<A>(values[i + l]));
    }
  }
  for (; i < count; ++i) {
    update(0, static_cast<A>(values[i]));
  }
  A greatest = lane[0];
  bool any_missing = missing[0];
  for (int l = 1; l < kLanes; ++l) {
    greatest = lane[l] > greatest ? lane[l] : greatest;
    any_missing = any_missing || missing[l];
  }
  return any_missing ? std::numeric_limits<A>::quiet_NaN() : greatest;
}

// Of values [begin, end) of a row without a NaN.
template <typename A, typename T>
Greatest<A> first_greatest(const T* row, int64_t begin, int64_t end, A greatest) {
  const T* at = std::find_if(row + begin, row + end, [=](T value) { return static_cast<A>(value) == greatest; });
  return at == row + end ? nothing_seen<A>() : Greatest<A>{greatest, at - row};
}

template <typename A, typename T>
MarginState<A> margin_state(const T* row, int64_t classes, int64_t label) {
  const A before = greatest_value<A>(row, label), after = greatest_value<A>(row + label + 1, classes - label - 1);
  const A own = static_cast<A>(row[label]);
  if (is_missing(before) || is_missing(after) || is_missing(own)) {
    MarginState<A> state = no_logits<A>();
    for (int64_t c = 0; c < classes; ++c) {
      state = with_logit(state, static_cast<A>(row[c]), c, label);
    }
    return state;
  }
  const Greatest<A> other = label > 0 && (label + 1 == classes || before >= after)
                                ? first_greatest(row, 0, label, before)
                                : first_greatest(row, label + 1, classes, after);
  return {greater_of(other, {own, label}), other};
}

// Calls f(n, row, state, type) for each row of logits.
template <typename F>
void for_each_row(const Tensor& logits, const Tensor& labels, const F& f) {
  const Tensor values = torch::stable::contiguous(logits), label = torch::stable::contiguous(labels);
  const int64_t classes = logits.size(1);
  dispatch_floating(logits.scalar_type(), [&](auto value) {
    using T = decltype(value);
    torch::stable::parallel_for(0, logits.size(0), std::max<int64_t>(1, kGrainValues / classes),
                                [&](int64_t begin, int64_t end) {
                                  for (int64_t n = begin; n < end; ++n) {
                                    const T* row = data_of<T>(values) + n * classes;
                                    const int64_t own = data_of<int64_t>(label)[n];
                                    f(n, row, own, margin_state<arithmetic_t<T>>(row, classes, own));
                                  }
                                });
  });
}

std::tuple<Tensor, Tensor> label_margin(const Tensor& logits, const Tensor& labels) {
  checks::label_margin(logits, labels);
  Tensor margin = torch::stable::new_empty(logits, {logits.size(0)});
  Tensor predicted = torch::stable::new_empty(labels, {logits.size(0)});
  for_each_row(logits, labels, [&](int64_t n, const auto* row, int64_t label, const auto& state) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(row)>>;
    mutable_data_of<T>(margin)[n] = static_cast<T>(margin_of(state, static_cast<arithmetic_t<T>>(row[label])));
    mutable_data_of<int64_t>(predicted)[n] = state.any.index;
  });
  return {margin, predicted};
}

Tensor label_margin_backward(const Tensor& grad_margin, const Tensor& logits, const Tensor& labels) {
  checks::label_margin_backward(grad_margin, logits, labels);
  const Tensor grad = torch::stable::contiguous(grad_margin);
  Tensor out = torch::stable::new_zeros(logits, {logits.size(0), logits.size(1)});
  for_each_row(logits, labels, [&](int64_t n, const auto* row, int64_t label, const auto& state) {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(row)>>;
    const T g = data_of<T>(grad)[n];
    T* to = mutable_data_of<T>(out) + n * logits.size(1);
    to[label] = g;
    to[state.other.index] = static_cast<T>(-g);
  });
  return out;
}

Tensor probe_answers(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& above) {
  checks::probe_answers(logits, labels, above);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor out = torch::stable::new_empty(logits, {3, rows}, ScalarType::Double);
  const Tensor values = torch::stable::contiguous(logits), label = torch::stable::contiguous(labels);
  const std::optional<Tensor> mask = above ? std::optional(torch::stable::contiguous(*above)) : std::nullopt;
  double* to = mutable_data_of<double>(out);
  dispatch_floating(logits.scalar_type(), [&](auto value) {
    using T = decltype(value);
    using A = arithmetic_t<T>;
    torch::stable::parallel_for(0, rows, std::max<int64_t>(1, kGrainValues / classes), [&](int64_t begin, int64_t end) {
      std::vector<T> taking_part(mask ? classes : 0);
      for (int64_t n = begin; n < end; ++n) {
        const T *whole = data_of<T>(values) + n * classes, *row = whole;
        if (mask) {
          const bool* left_out = data_of<bool>(*mask) + n * classes;
          for (int64_t c = 0; c < classes; ++c) {
            taking_part[c] = left_out[c] ? static_cast<T>(-std::numeric_limits<float>::infinity()) : whole[c];
          }
          row = taking_part.data();
        }
        const int64_t own = data_of<int64_t>(label)[n];
        const MarginState<A> state = margin_state<A>(row, classes, own);
        to[n] = static_cast<double>(static_cast<T>(margin_of(state, static_cast<A>(row[own]))));
        to[rows + n] = state.any.index != own;
        to[2 * rows + n] = static_cast<double>(greatest_value<A, true>(whole, classes));
      }
    });
  });
  return out;
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) {
  APEM_FAST_KERNEL(m, label_margin);
  APEM_FAST_KERNEL(m, label_margin_backward);
  APEM_FAST_KERNEL(m, probe_answers);
}

}  // namespace apem_fast
