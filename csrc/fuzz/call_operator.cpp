// One call of one operator, made of bytes: shapes, strides, dtypes, values and options right for the most part, and
// wrong in any way for the rest. It must give an answer or refuse in one sentence; sanitizers see the rest.
//
// The signature is libFuzzer's: clang links that; other compilers link coverage.cpp in its place.

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/from_blob.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

using at::ScalarType;
using at::Tensor;
using Sizes = std::vector<int64_t>;

extern "C" int64_t apem_fast_answered = 0, apem_fast_refused = 0;

namespace {

// Bytes, and zeros when they have come to an end.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t next() { return at_ < size_ ? data_[at_++] : 0; }
  int64_t below(int64_t bound) { return next() % bound; }
  bool rarely() { return below(24) == 23; }  // not of zeros

  double number() {
    static constexpr double kKnown[] = {0, 1, 0.5, -1, 99, 100, 1e-3, -0.25, 1e300, -1e300};
    const int64_t choice = below(13);
    if (choice < 10) {
      return kKnown[choice];
    }
    double value;
    uint8_t bits[sizeof value];
    for (uint8_t& bit : bits) {
      bit = next();
    }
    std::memcpy(&value, bits, sizeof value);
    return value;
  }

 private:
  const uint8_t* data_;
  size_t size_, at_ = 0;
};

constexpr ScalarType kFloating[] = {ScalarType::Float, ScalarType::Double, ScalarType::Half, ScalarType::BFloat16};
constexpr ScalarType kOthers[] = {ScalarType::Char, ScalarType::Long,         ScalarType::Bool, ScalarType::Int,
                                  ScalarType::Byte, ScalarType::ComplexFloat, ScalarType::Half, ScalarType::Double};

class Call {
 public:
  Call(const uint8_t* data, size_t size) : bytes_(data, size) {}

  // Any order of memory, gaps, an offset, dimensions that repeat; the buffer ends where the last value does.
  Tensor tensor(Sizes shape, ScalarType dtype, int64_t below = 0) {
    if (bytes_.rarely()) {
      spoil(shape);
    }
    if (bytes_.rarely()) {
      dtype = kOthers[bytes_.below(std::size(kOthers))];
    }
    Sizes strides(shape.size());
    const int64_t layout = bytes_.below(8), gap = layout == 6 ? 2 : 1;
    int64_t step = gap, last = 0;
    const auto stride = [&](size_t d) {
      strides[d] = layout == 7 && bytes_.below(3) == 0 ? 0 : step;
      step *= strides[d] == 0 ? 1 : std::max<int64_t>(shape[d], 1);
      last += strides[d] * std::max<int64_t>(shape[d] - 1, 0);
    };
    if (layout == 4 && shape.size() == 4) {  // channels-last
      for (const size_t d : {1, 3, 2, 0}) {
        stride(d);
      }
    } else {
      for (size_t i = 0; i < shape.size(); ++i) {
        stride(layout == 5 ? i : shape.size() - 1 - i);
      }
    }
    bool empty = false;
    for (const int64_t length : shape) {
      empty = empty || length == 0;
    }
    const int64_t width = static_cast<int64_t>(c10::elementSize(dtype)), offset = bytes_.below(5) == 4;
    const int64_t room = empty ? 0 : last + 1 + offset;
    auto* memory = static_cast<uint8_t*>(std::malloc(std::max<int64_t>(room * width, 1)));
    buffers_.emplace_back(memory, &std::free);
    fill(memory, room, dtype, below);
    void* begin = memory + (empty ? 0 : offset * width);
    Tensor result = at::from_blob(begin, shape, strides, at::TensorOptions().dtype(dtype));
    if (bytes_.rarely() && at::isFloatingType(dtype)) {
      result.set_requires_grad(true);
    }
    return result;
  }

  c10::IValue maybe(const Tensor& value) { return bytes_.below(2) ? c10::IValue(value) : c10::IValue(); }
  c10::IValue bound() { return bytes_.below(3) == 2 ? c10::IValue(bytes_.number()) : c10::IValue(); }
  Bytes& bytes() { return bytes_; }

 private:
  void spoil(Sizes& shape) {
    const int64_t how = bytes_.below(4);
    if (how == 0 && !shape.empty()) {
      shape.pop_back();
    } else if (how == 1) {
      shape.push_back(1 + bytes_.below(3));
    } else if (!shape.empty()) {
      shape[bytes_.below(static_cast<int64_t>(shape.size()))] = bytes_.below(7);
    }
  }

  void fill(uint8_t* memory, int64_t room, ScalarType dtype, int64_t below) {
    const int64_t width = static_cast<int64_t>(c10::elementSize(dtype));
    const bool any = bytes_.rarely();  // indices that are out of range, too
    const int64_t seed = bytes_.next(), pattern = bytes_.below(4);
    for (int64_t i = 0; i < room; ++i) {
      const uint64_t mixed = (static_cast<uint64_t>(i) * 6364136223846793005u + seed * 1442695040888963407u) >> 24;
      if (dtype == ScalarType::Bool) {
        memory[i] = mixed % 2;
      } else if (dtype == ScalarType::Long) {
        const int64_t index = any ? static_cast<int64_t>(mixed % 9) - 4 : below ? mixed % below : 0;
        std::memcpy(memory + i * width, &index, width);
      } else if (pattern == 0) {  // any bits
        for (int64_t b = 0; b < width; ++b) {
          memory[i * width + b] = static_cast<uint8_t>(mixed >> (8 * (b % 4))) ^ bytes_.next();
        }
      } else {
        write(memory + i * width, dtype, pattern == 1 ? (mixed % 9) / 8.0 : (mixed % 2001) / 1000.0 - 1);
      }
    }
  }

  static void write(uint8_t* to, ScalarType dtype, double value) {
    const auto put = [&](auto converted) { std::memcpy(to, &converted, sizeof converted); };
    switch (dtype) {
      case ScalarType::Float: put(static_cast<float>(value)); break;
      case ScalarType::Double: put(value); break;
      case ScalarType::Half: put(c10::Half(static_cast<float>(value))); break;
      case ScalarType::BFloat16: put(c10::BFloat16(static_cast<float>(value))); break;
      case ScalarType::Int: put(static_cast<int32_t>(value * 3)); break;
      case ScalarType::ComplexFloat: put(std::array<float, 2>{static_cast<float>(value), 0}); break;
      default: *to = static_cast<uint8_t>(static_cast<int8_t>(value * 2)); break;
    }
  }

  std::vector<std::unique_ptr<uint8_t, void (*)(void*)>> buffers_;
  Bytes bytes_;
};

const char* const kOperators[] = {"directed_relevance",
                                  "directed_relevance_backward",
                                  "perturb",
                                  "perturb_backward",
                                  "perturb_probes",
                                  "perturb_probes_into",
                                  "label_margin",
                                  "probe_answers",
                                  "label_margin_backward",
                                  "first_flip",
                                  "relevance_map",
                                  "zero_levels",
                                  "attack_penalty",
                                  "attack_penalty_backward",
                                  "attack_step",
                                  "saliency_map",
                                  "_depthwise_conv2d",
                                  "_depthwise_conv2d_backward"};

torch::jit::Stack arguments_of(const std::string& op, Call& call) {
  Bytes& bytes = call.bytes();
  static constexpr int64_t kLengths[] = {1, 2, 3, 0, 5, 8, 17};
  const auto length = [&] { return kLengths[bytes.below(std::size(kLengths))]; };
  const ScalarType dtype = kFloating[bytes.below(4)], wide = ScalarType::Double;
  const int64_t n = length(), c = length(), h = length(), w = length(), k = length();
  const int64_t channels = bytes.below(2) ? 1 : c;
  const Sizes image{n, c, h, w}, map{n, channels, h, w};
  const auto full = [&] { return call.tensor(image, dtype); };
  const auto signs = [&] { return bytes.below(2) ? call.tensor(image, ScalarType::Char) : full(); };
  const Sizes steps = bytes.below(2) ? Sizes{k} : Sizes{n, k};
  if (op == "directed_relevance") {
    return {call.tensor(map, dtype), signs(), bytes.below(2) == 1};
  }
  if (op == "directed_relevance_backward") {
    return {full(), call.tensor(map, dtype), signs(), bytes.below(2) == 1};
  }
  if (op == "perturb") {
    return {full(), full(), call.tensor(steps, kFloating[bytes.below(4)]), call.bound(), call.bound()};
  }
  if (op == "perturb_backward") {
    return {call.tensor({n, k, c, h, w}, dtype),           full(),       full(),
            call.tensor(steps, kFloating[bytes.below(4)]), call.bound(), call.bound()};
  }
  if (op == "perturb_probes" || op == "perturb_probes_into") {
    const auto numbers = [&] { return call.tensor({k}, wide); };
    const auto rows = [&] { return call.tensor({k}, ScalarType::Long, n); };
    static constexpr ScalarType kOut[] = {ScalarType::Half, ScalarType::BFloat16, ScalarType::Float, ScalarType::Int};
    const c10::IValue out = bytes.below(2) ? c10::IValue(kOut[bytes.below(4)]) : c10::IValue();
    torch::jit::Stack stack{full(), call.tensor(map, dtype), signs(), numbers(), rows(), rows()};
    for (const c10::IValue& argument :
         torch::jit::Stack{call.tensor({k}, ScalarType::Bool), numbers(), numbers(), call.bound(), call.bound()}) {
      stack.push_back(argument);
    }
    if (op == "perturb_probes") {
      stack.push_back(out);
    } else {
      stack.insert(stack.begin(), call.tensor({k, c, h, w}, dtype));
    }
    return stack;
  }
  const auto logits = [&] { return call.tensor({n, k + 2}, dtype); };
  const auto labels = [&] { return call.tensor({n}, ScalarType::Long, k + 2); };
  if (op == "label_margin") {
    return {logits(), labels()};
  }
  if (op == "probe_answers") {
    return {logits(), labels(), call.maybe(call.tensor({n, k + 2}, ScalarType::Bool))};
  }
  if (op == "label_margin_backward") {
    return {call.tensor({n}, dtype), logits(), labels()};
  }
  if (op == "first_flip") {
    return {call.tensor({n, k}, ScalarType::Long, 3), call.tensor({n}, ScalarType::Long, 3),
            call.tensor(steps, bytes.below(2) ? wide : ScalarType::Float)};
  }
  if (op == "relevance_map") {
    const c10::IValue percentile = bytes.below(4) ? c10::IValue(bytes.number()) : c10::IValue();
    const std::string kinds[] = {"sum", "keep", "sum", "mean"};
    return {full(), call.maybe(call.tensor(map, dtype)), percentile, kinds[bytes.below(4)]};
  }
  if (op == "zero_levels") {
    return {full(), call.tensor(steps, bytes.below(2) ? wide : ScalarType::Float)};
  }
  if (op == "attack_penalty") {
    return {full(), full(), bytes.number(), bytes.number(), bytes.number()};
  }
  if (op == "attack_penalty_backward") {
    return {call.tensor({n}, wide), full(), full(), bytes.number(), bytes.number(), bytes.number()};
  }
  if (op == "attack_step") {
    const Sizes region{bytes.below(2) ? 1 : n, channels, h, w};
    return {full(),
            full(),
            call.maybe(full()),
            call.maybe(call.tensor(region, ScalarType::Bool)),
            bytes.number(),
            bytes.number(),
            call.bound(),
            call.bound(),
            call.maybe(full()),
            bytes.below(2) ? bytes.number() : 0.0};
  }
  if (op == "saliency_map") {
    return {full(), full()};
  }
  const int64_t filters = 1 + bytes.below(3), taps[] = {1 + bytes.below(8), 1 + bytes.below(8)};
  int64_t stride[2], padding[2], dilation[2], out[2];
  for (int d = 0; d < 2; ++d) {
    stride[d] = bytes.rarely() ? -1 : 1 + bytes.below(3);
    padding[d] = bytes.rarely() ? -1 : bytes.below(9);
    dilation[d] = bytes.rarely() ? 0 : 1 + bytes.below(3);
    out[d] =
        ((d == 0 ? h : w) + 2 * padding[d] - dilation[d] * (taps[d] - 1) - 1) / std::max<int64_t>(stride[d], 1) + 1;
    out[d] = std::max<int64_t>(out[d], 0);
  }
  const Tensor weight = call.tensor({c * filters, 1, taps[0], taps[1]}, wide);
  torch::jit::Stack stack{call.tensor(op == "_depthwise_conv2d" ? image : Sizes{n, c * filters, out[0], out[1]}, wide),
                          weight};
  if (op == "_depthwise_conv2d") {
    stack.push_back(call.maybe(call.tensor({c * filters}, wide)));
  } else {
    stack.push_back(h);
    stack.push_back(w);
  }
  for (const int64_t* option : {stride, padding, dilation}) {
    stack.push_back(option[0]);
    stack.push_back(option[1]);
  }
  if (op == "_depthwise_conv2d_backward") {
    stack.push_back(c);
  }
  return stack;
}

// Reads every value, so that memory that is not the result's own would be seen.
void read(const Tensor& result) {
  const Tensor whole = result.contiguous();
  const auto* byte = static_cast<const volatile uint8_t*>(whole.const_data_ptr());
  for (size_t i = 0; i < whole.nbytes(); ++i) {
    (void)byte[i];
  }
}

// Torch adds where it was thrown below the first line.
bool is_a_sentence(const std::string& op, const std::string& what) {
  const std::string first = what.substr(0, what.find('\n'));
  return first.rfind(op + ": ", 0) == 0 || first.find("derivative") != std::string::npos;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Call call(data, size);
  const std::string op = kOperators[call.bytes().below(std::size(kOperators))];
  torch::jit::Stack stack = arguments_of(op, call);
  const at::AutoGradMode recording(call.bytes().below(4) == 3);
  try {
    c10::Dispatcher::singleton().findSchemaOrThrow(("apem_fast::" + op).c_str(), "").callBoxed(&stack);
  } catch (const std::exception& error) {
    ++apem_fast_refused;
    if (!is_a_sentence(op, error.what())) {
      std::fprintf(stderr, "%s: no sentence: %s\n", op.c_str(), error.what());
      std::abort();
    }
    return 0;
  }
  ++apem_fast_answered;
  for (const c10::IValue& result : stack) {
    read(result.toTensor());
  }
  return 0;
}
