// Binds label_margin_kernel.cuh to torch.

#include "binding.h"
#include "label_margin_kernel.cuh"

#include <tuple>

namespace apem_fast {
namespace {

std::tuple<Tensor, Tensor> label_margin(const Tensor& logits, const Tensor& labels) {
  checks::label_margin(logits, labels);
  const OnDeviceOf device(logits);
  Tensor margin = torch::stable::new_empty(logits, {logits.size(0)});
  Tensor predicted = torch::stable::new_empty(labels, {logits.size(0)});
  const Tensor rows = torch::stable::contiguous(logits);  // [N, classes]
  const Tensor l = torch::stable::contiguous(labels);     // [N]

  dispatch_floating(logits.scalar_type(), [&](auto value) {
    using T = decltype(value);
    launch_label_margin APEM_FAST_BLOCK(
        LabelMarginArguments<T>{data_of<T>(rows), data_of<int64_t>(l), mutable_data_of<T>(margin),
                                mutable_data_of<int64_t>(predicted), rows.size(0), rows.size(1)},
        device.stream);
  });
  device.check_launches();
  return {margin, predicted};
}

Tensor label_margin_backward(const Tensor& grad_margin, const Tensor& logits, const Tensor& labels) {
  checks::label_margin_backward(grad_margin, logits, labels);
  const OnDeviceOf device(logits);
  Tensor out = torch::stable::new_empty(logits, {logits.size(0), logits.size(1)});
  const Tensor grad = torch::stable::contiguous(grad_margin);  // [N]
  const Tensor rows = torch::stable::contiguous(logits);       // [N, classes]
  const Tensor l = torch::stable::contiguous(labels);          // [N]

  dispatch_floating(logits.scalar_type(), [&](auto value) {
    using T = decltype(value);
    launch_label_margin_backward APEM_FAST_BLOCK(
        LabelMarginBackwardArguments<T>{data_of<T>(grad), data_of<T>(rows), data_of<int64_t>(l),
                                        mutable_data_of<T>(out), rows.size(0), rows.size(1)},
        device.stream);
  });
  device.check_launches();
  return out;
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) {
  APEM_FAST_KERNEL(m, label_margin);
  APEM_FAST_KERNEL(m, label_margin_backward);
}

}  // namespace apem_fast
