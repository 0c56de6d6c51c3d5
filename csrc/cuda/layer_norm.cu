// Layer norm, alone or of the means of several rows: a warp a row.
//
// Bytes: 4 D a row in 16 bits, 2 (P + 1) D of means of P rows; weight and bias come from the L1,
// and arithmetic, about 12 instructions an element, hides behind them. A row stays in registers as
// float32, from its sum to its deviations to its end, and no warp waits for another: 1,280 columns
// of the encoder are 40 values a lane, in 5 chunks of 16 bytes that are all in flight at once. What
// lies beyond 1,280 columns is read anew each time, from the L1 or L2. 8 rows a block of 256
// threads, 80 to 128 registers: 16 warps a multiprocessor or more, with 40 KB in flight where an
// H200 needs 25.
#include "cuda/arch/call.h"
#include "cuda/arch/numbers.h"
#include "cuda/arch/warp.h"
#include "cuda/dispatch.h"
#include "cuda/layer_norm.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 256, kRows = kThreads / arch::kWarp;
constexpr int kKeptValues = 40;  // of a lane

struct Params {
  const void *x, *weight, *bias;
  const int64_t* pooled;  // [rows, pool], or null: row r of out is of row r of x
  void* out;
  int64_t x_stride;  // elements
  int64_t rows, x_rows;
  int width, pool;
  float eps;
};

template <typename T, int kVector>
struct alignas(sizeof(T) * kVector) Vector {
  T at[kVector];
};

template <typename T, int kVector>
AFNEXT_DEVICE void load(const void* row, int64_t column, float (&t)[kVector]) {
  const auto v = *reinterpret_cast<const Vector<T, kVector>*>(static_cast<const T*>(row) + column);
#pragma unroll
  for (int i = 0; i < kVector; ++i) t[i] = arch::to_float(v.at[i]);
}

// The rows of x behind one row of out. Where one of them does not exist none is read, and their
// mean is NaN.
template <typename T>
struct Source {
  const Params& p;
  int64_t row;
  int pool;
  float share;  // of each in the mean

  AFNEXT_DEVICE Source(const Params& p, int64_t row)
      : p(p), row(row), pool(p.pool), share(1.0f / static_cast<float>(p.pool)) {
    for (int j = 0; j < p.pool; ++j) {
      if (name(j) < 0 || name(j) >= p.x_rows) pool = 0, share = arch::bits_float(0x7fc00000);
    }
  }
  AFNEXT_DEVICE int64_t name(int j) const {
    return p.pooled == nullptr ? row : p.pooled[row * p.pool + j];
  }
  AFNEXT_DEVICE const T* at(int j) const {
    return static_cast<const T*>(p.x) + name(j) * p.x_stride;
  }
  // Of some columns.
  template <int kVector>
  AFNEXT_DEVICE void mean(int column, float (&t)[kVector]) const {
#pragma unroll
    for (float& value : t) value = 0;
    for (int j = 0; j < pool; ++j) {
      float more[kVector];
      load<T>(at(j), column, more);
#pragma unroll
      for (int i = 0; i < kVector; ++i) t[i] += more[i];
    }
#pragma unroll
    for (float& value : t) value *= share;
  }
};

// Deviations from a first mean give the variance without cancellation, and their own mean corrects
// the first one, which is rounded where the mean is far from zero (Chan, Golub and LeVeque, 1983).
template <typename T, int kVector>
__global__ void __launch_bounds__(kThreads, 2) layer_norm_kernel(const Params p) {
  constexpr int kKept = kKeptValues / kVector, kStep = kVector * arch::kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / arch::kWarp;
  if (row >= p.rows) return;
  const int column = kVector * static_cast<int>(threadIdx.x % arch::kWarp);
  const int rest = column + kKept * kStep;  // the first column that is not kept
  const Source<T> source(p, row);

  float kept[kKept][kVector] = {};
  float sum = 0;
#pragma unroll 1
  for (int j = 0; j < source.pool; ++j) {
    const T* x = source.at(j);
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (column + i * kStep >= p.width) continue;
      float t[kVector];
      load<T>(x, column + i * kStep, t);
#pragma unroll
      for (int k = 0; k < kVector; ++k) kept[i][k] += t[k];
    }
  }
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) sum += kept[i][k] *= source.share;
  }
#pragma unroll 1
  for (int c = rest; c < p.width; c += kStep) {
    float t[kVector];
    source.mean(c, t);
#pragma unroll
    for (int k = 0; k < kVector; ++k) sum += t[k];
  }
  const auto width = static_cast<float>(p.width);
  const float first = arch::sum_lanes(sum) / width;

  float deviations = 0, squares = 0;
  const auto add = [&](const float (&t)[kVector]) {
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      const float v = t[k] - first;
      deviations += v;
      squares += v * v;
    }
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (column + i * kStep < p.width) add(kept[i]);
  }
#pragma unroll 1
  for (int c = rest; c < p.width; c += kStep) {
    float t[kVector];
    source.mean(c, t);
    add(t);
  }
  const float drift = arch::sum_lanes(deviations) / width;
  const float scale = 1.0f / sqrtf(arch::sum_lanes(squares) / width - drift * drift + p.eps);

  const auto finish = [&](int c, const float (&t)[kVector]) {
    float weight[kVector], bias[kVector];
    load<T>(p.weight, c, weight);
    load<T>(p.bias, c, bias);
    Vector<T, kVector> v;
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      v.at[k] = arch::rounded<T>((t[k] - first - drift) * scale * weight[k] + bias[k]);
    }
    *reinterpret_cast<Vector<T, kVector>*>(static_cast<T*>(p.out) + row * p.width + c) = v;
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (column + i * kStep < p.width) finish(column + i * kStep, kept[i]);
  }
#pragma unroll 1
  for (int c = rest; c < p.width; c += kStep) {
    float t[kVector];
    source.mean(c, t);
    finish(c, t);
  }
}

}  // namespace

void layer_norm(const TensorView& x, const TensorView& weight, const TensorView& bias, double eps,
                const TensorView* pooled, const TensorView& out, Stream stream) {
  const Call call("layer_norm", x, stream);
  const Params p{x.data,
                 weight.data,
                 bias.data,
                 pooled ? pooled->as<const int64_t>() : nullptr,
                 out.data,
                 x.row_stride(),
                 out.rows(),
                 x.rows(),
                 static_cast<int>(x.last()),
                 pooled ? static_cast<int>(pooled->shape[1]) : 1,
                 static_cast<float>(eps)};
  const dim3 grid(static_cast<unsigned>((p.rows + kRows - 1) / kRows));
  const bool wide = rows_align(x) && rows_align(weight) && rows_align(bias) && rows_align(out);
  with_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (wide) {
      call.launch<layer_norm_kernel<T, 16 / sizeof(T)>>(grid, kThreads, 0, p);
    } else {
      call.launch<layer_norm_kernel<T, 1>>(grid, kThreads, 0, p);
    }
  });
}

}  // namespace afnext::cuda
