// Binds probe_answers_kernel.cuh to torch.

#include "binding.h"
#include "probe_answers_kernel.cuh"

namespace apem_fast {
namespace {

Tensor probe_answers(const Tensor& logits, const Tensor& labels, const std::optional<Tensor>& above) {
  checks::probe_answers(logits, labels, above);
  const OnDeviceOf device(logits);
  const int64_t rows = logits.size(0), classes = logits.size(1);
  Tensor out = torch::stable::new_empty(logits, {3, rows}, ScalarType::Double);
  const Tensor l = torch::stable::contiguous(logits);    // [N, classes]
  const Tensor own = torch::stable::contiguous(labels);  // [N]
  const std::optional<Tensor> mask =                     // [N, classes]
      above ? std::optional(torch::stable::contiguous(*above)) : std::nullopt;

  dispatch_floating(logits.scalar_type(), [&](auto value) {
    using T = decltype(value);
    launch_probe_answers APEM_FAST_BLOCK(
        ProbeAnswersArguments<T>{data_of<T>(l), data_of<int64_t>(own), mask ? data_of<bool>(*mask) : nullptr,
                                 mutable_data_of<double>(out), rows, classes},
        device.stream);
  });
  device.check_launches();
  return out;
}

}  // namespace

APEM_FAST_CUDA_LIBRARY(m) { APEM_FAST_KERNEL(m, probe_answers); }

}  // namespace apem_fast
