// Convolutions with one input channel each, in float64, on the CPU: the answers of record are computed in it, and
// torch has no kernel of its own for them. It runs one matrix product a channel, which takes most of the time of a
// network of depthwise layers. Every sum is taken in the same order by all versions and numbers of threads: the bias,
// then the kernel's rows from top to bottom, each from left to right, with zeros for what lies beside the image.

#include "tiles.h"

namespace apem_fast {
namespace {

constexpr int64_t kMostOfAnOption = int64_t{1} << 30;  // so that no product of two overflows

// One dimension of a convolution. Output i reads at i * stride + tap * dilation; input r lies at padding + r * spread,
// and zeros everywhere else. A padding below 0 leaves inputs out; they lie close together but where the derivative of a
// convolution with strides is taken.
struct Axis {
  int64_t in, out, taps, stride, padding, dilation, spread;

  int64_t read() const { return stride * (out - 1) + dilation * (taps - 1) + 1; }
  int64_t place(int64_t r) const { return padding + r * spread; }
  bool has(int64_t at) const { return spread == 1 || (at - padding) % spread == 0; }
  int64_t first() const { return std::min(in, padding < 0 ? (spread - 1 - padding) / spread : 0); }  // that is read
  int64_t end() const {
    const int64_t room = read() - padding;
    return std::max(first(), std::min(in, room > 0 ? (room + spread - 1) / spread : 0));
  }
};

// Of the same convolution with its inputs and outputs exchanged and its taps in reverse: its derivative.
Axis transposed(const Axis& a) {
  return {a.out, a.in, a.taps, 1, a.dilation * (a.taps - 1) - a.padding, a.dilation, a.stride};
}

template <int64_t kTaps, int64_t kStride>
APEM_FAST_VECTOR_VERSIONS void add_neighbours(double* sum, const double* from, const double* weight, int64_t count) {
  double w[kTaps];
  std::copy(weight, weight + kTaps, w);
  for (int64_t i = 0; i < count; ++i) {
    double value = sum[i];
    for (int64_t j = 0; j < kTaps; ++j) {
      value += w[j] * from[i * kStride + j];
    }
    sum[i] = value;
  }
}

template <int64_t kStride>
APEM_FAST_VECTOR_VERSIONS void add_one(double* sum, const double* from, double weight, int64_t count, int64_t stride) {
  const int64_t step = kStride ? kStride : stride;
  for (int64_t i = 0; i < count; ++i) {
    sum[i] += weight * from[i * step];
  }
}

template <int64_t kStride>
void add_taps(double* sum, const double* from, const double* weight, int64_t count, const Axis& x) {
  if (kStride && x.dilation == 1 && x.taps == 3) {
    add_neighbours<3, kStride>(sum, from, weight, count);
  } else if (kStride && x.dilation == 1 && x.taps == 5) {
    add_neighbours<5, kStride>(sum, from, weight, count);
  } else if (kStride && x.dilation == 1 && x.taps == 7) {
    add_neighbours<7, kStride>(sum, from, weight, count);
  } else {
    for (int64_t j = 0; j < x.taps; ++j) {
      add_one<kStride>(sum, from + j * x.dilation, weight[j], count, x.stride);
    }
  }
}

// sum[i] += weight[0] * from[i * stride] + weight[1] * from[i * stride + dilation] + ..., term by term.
void add_row(double* sum, const double* from, const double* weight, int64_t count, const Axis& x) {
  if (x.stride == 1) {
    add_taps<1>(sum, from, weight, count, x);
  } else if (x.stride == 2) {
    add_taps<2>(sum, from, weight, count, x);
  } else {
    add_taps<0>(sum, from, weight, count, x);
  }
}

// One plane as a convolution reads it, with its zeros, so that no tap lies beside it.
void lay_out(std::vector<double>& plane, const double* image, const Axis& y, const Axis& x) {
  plane.assign(y.read() * x.read(), 0.);
  for (int64_t r = y.first(); r < y.end(); ++r) {
    double* row = plane.data() + y.place(r) * x.read();
    if (x.spread == 1) {
      std::copy(image + r * x.in + x.first(), image + r * x.in + x.end(), row + x.place(x.first()));
      continue;
    }
    for (int64_t c = x.first(); c < x.end(); ++c) {
      row[x.place(c)] = image[r * x.in + c];
    }
  }
}

// Adds a plane's convolution with one kernel to `out`. Where it can, it takes many rows in one run, and drops the
// values between one row's end and the next one's beginning.
void convolve(double* out, const std::vector<double>& plane, const double* kernel, const Axis& y, const Axis& x,
              std::vector<double>& run) {
  const int64_t width = x.read();
  const int64_t together =
      y.stride == 1 && x.stride == 1 && y.spread == 1 ? std::max(int64_t{1}, kTileValues / width) : 1;
  for (int64_t begin = 0; begin < y.out; begin += together) {
    const int64_t rows = std::min(together, y.out - begin), count = (rows - 1) * width + x.out;
    double* of_rows = out + begin * x.out;
    run.assign(count, 0.);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(of_rows + r * x.out, x.out, run.data() + r * width);
    }
    for (int64_t i = 0; i < y.taps; ++i) {
      const int64_t at = begin * y.stride + i * y.dilation;
      if (y.has(at)) {
        add_row(run.data(), plane.data() + at * width, kernel + i * x.taps, count, x);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(run.data() + r * width, x.out, of_rows + r * x.out);
    }
  }
}

struct Convolution {
  int64_t images, channels, filters;  // a channel has `filters` outputs, which lie one behind the other
  Axis y, x;
};

Axis axis_of(const char* op, const char* name, int64_t in, int64_t taps, int64_t stride, int64_t padding,
             int64_t dilation) {
  const auto option = [&](const char* what, int64_t least, int64_t value) {
    checks::require(least <= value && value <= kMostOfAnOption, op, std::string(what) + name,
                    "lie in [" + std::to_string(least) + ", 2^30]", value);
  };
  option("stride_", 1, stride);
  option("padding_", 0, padding);
  option("dilation_", 1, dilation);
  checks::require(1 <= taps && taps <= kMostOfAnOption, op, "weight", "have a value in each dimension", taps);
  const int64_t reach = dilation * (taps - 1) + 1;
  checks::require(reach <= in + 2 * padding, op, "weight",
                  "reach no further than the padded input, " + std::to_string(in + 2 * padding), reach);
  return {in, (in + 2 * padding - reach) / stride + 1, taps, stride, padding, dilation, 1};
}

Convolution convolution_of(const char* op, const Tensor& weight, int64_t images, int64_t channels, int64_t height,
                           int64_t width, const std::array<int64_t, 6>& options) {
  checks::dtype(op, "weight", weight, {ScalarType::Double});
  checks::dim(op, "weight", weight, "(filters of the channels, 1, KH, KW)", {4});
  checks::require(weight.size(1) == 1, op, "weight", "have shape (filters of the channels, 1, KH, KW)",
                  shape_of(weight));
  checks::require(channels > 0 && weight.size(0) > 0 && weight.size(0) % channels == 0, op, "weight",
                  "have as many filters for each of " + std::to_string(channels) + " channels", weight.size(0));
  return {images, channels, weight.size(0) / channels,
          axis_of(op, "h", height, weight.size(2), options[0], options[2], options[4]),
          axis_of(op, "w", width, weight.size(3), options[1], options[3], options[5])};
}

// Calls f(begin, end) for runs of planes, on several threads.
template <typename F>
void for_planes(const Convolution& c, int64_t planes, const F& f) {
  const int64_t work = std::max<int64_t>(1, c.y.out * c.x.out * c.y.taps * c.x.taps);
  torch::stable::parallel_for(0, planes, std::max<int64_t>(1, kGrainValues / work), f);
}

Tensor _depthwise_conv2d(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias, int64_t stride_h,
                         int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h,
                         int64_t dilation_w) {
  const char* op = "_depthwise_conv2d";
  checks::dtype(op, "input", input, {ScalarType::Double});
  checks::dim(op, "input", input, "(N, C, H, W)", {4});
  const Convolution c = convolution_of(op, weight, input.size(0), input.size(1), input.size(2), input.size(3),
                                       {stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w});
  checks::same_device(op, "input", input, {{"weight", &weight}});
  if (bias) {
    checks::dtype(op, "bias", *bias, {ScalarType::Double});
    checks::sizes(op, "bias", *bias, {weight.size(0)});
    checks::same_device(op, "input", input, {{"bias", &*bias}});
  }
  const Tensor from = torch::stable::contiguous(input), kernel = torch::stable::contiguous(weight);
  const std::optional<Tensor> start = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  const int64_t outputs = c.channels * c.filters, size = c.y.out * c.x.out;
  Tensor out = torch::stable::new_empty(input, {c.images, outputs, c.y.out, c.x.out});
  for_planes(c, c.images * outputs, [&](int64_t begin, int64_t end) {
    std::vector<double> plane, run;
    for (int64_t p = begin; p < end; ++p) {
      if (p == begin || p % c.filters == 0) {
        lay_out(plane, data_of<double>(from) + p / c.filters * c.y.in * c.x.in, c.y, c.x);
      }
      double* to = mutable_data_of<double>(out) + p * size;
      std::fill_n(to, size, start ? data_of<double>(*start)[p % outputs] : 0.);
      convolve(to, plane, data_of<double>(kernel) + p % outputs * c.y.taps * c.x.taps, c.y, c.x, run);
    }
  });
  return out;
}

Tensor _depthwise_conv2d_backward(const Tensor& grad_output, const Tensor& weight, int64_t height, int64_t width,
                                  int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w,
                                  int64_t dilation_h, int64_t dilation_w, int64_t channels) {
  const char* op = "_depthwise_conv2d_backward";
  checks::dtype(op, "grad_output", grad_output, {ScalarType::Double});
  checks::dim(op, "grad_output", grad_output, "(N, filters of the channels, H, W)", {4});
  checks::require(0 <= height && height <= kMostOfAnOption, op, "height", "lie in [0, 2^30]", height);
  checks::require(0 <= width && width <= kMostOfAnOption, op, "width", "lie in [0, 2^30]", width);
  const Convolution c = convolution_of(op, weight, grad_output.size(0), channels, height, width,
                                       {stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w});
  checks::sizes(op, "grad_output", grad_output, {c.images, weight.size(0), c.y.out, c.x.out});
  checks::same_device(op, "grad_output", grad_output, {{"weight", &weight}});
  const Tensor grad = torch::stable::contiguous(grad_output), kernel = torch::stable::contiguous(weight);
  Tensor out = torch::stable::new_empty(grad_output, {c.images, c.channels, height, width});
  const Axis y = transposed(c.y), x = transposed(c.x);
  const int64_t size = height * width, taps = y.taps * x.taps;
  for_planes(c, c.images * c.channels, [&](int64_t begin, int64_t end) {
    std::vector<double> plane, run, reversed(taps);
    for (int64_t p = begin; p < end; ++p) {
      double* to = mutable_data_of<double>(out) + p * size;
      std::fill_n(to, size, 0.);
      for (int64_t f = p * c.filters; f < (p + 1) * c.filters; ++f) {
        const double* w = data_of<double>(kernel) + f % (c.channels * c.filters) * taps;
        std::reverse_copy(w, w + taps, reversed.begin());
        lay_out(plane, data_of<double>(grad) + f * y.in * x.in, y, x);
        convolve(to, plane, reversed.data(), y, x, run);
      }
    }
  });
  return out;
}

}  // namespace

APEM_FAST_CPU_LIBRARY(m) {
  APEM_FAST_KERNEL(m, _depthwise_conv2d);
  APEM_FAST_KERNEL(m, _depthwise_conv2d_backward);
}

}  // namespace apem_fast
