// Layer norm, alone or of the means of several rows: a warp a row.
//
// Bytes: 4 D a row in 16 bits, 2 (P + 1) D of means of P rows; weight and bias come from the L1,
// and arithmetic, about 12 instructions an element, hides behind them. A row stays in registers
// from its sum to its end, as it came (means as float32), and no warp waits for another: 1,280
// columns of the encoder are 40 values a lane, in 5 chunks of 16 bytes that are all in flight at
// once. What lies beyond 1,280 columns is read anew each time, from the L1 or L2. 4 rows a block of
// 128 threads, at most 96 registers for 16 bits: 20 warps a multiprocessor with 50 KB in flight
// where an H200 needs 26.
//
// On an H200, bf16, 15,000 rows of 1,280: 22.7 us, 79 % of a copy's bandwidth; 4 of those
// microseconds are a grid's beginning and end.
#include <type_traits>

#include "cuda/arch/call.h"
#include "cuda/arch/griddepcontrol.h"
#include "cuda/arch/numbers.h"
#include "cuda/arch/warp.h"
#include "cuda/dispatch.h"
#include "cuda/layer_norm.h"
#include "cuda/vector.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 128, kRows = kThreads / arch::kWarp;
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
  AFNEXT_DEVICE Floats<kVector> mean(int column) const {
    Floats<kVector> sum{};
    for (int j = 0; j < pool; ++j) {
      const Floats<kVector> more = to_floats(load<kVector>(at(j) + column));
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum.at[i] += more.at[i];
    }
#pragma unroll
    for (float& value : sum.at) value *= share;
    return sum;
  }
};

// Deviations from a value near the mean give the variance without cancellation, and their own mean
// the mean (Chan, Golub and LeVeque, 1983). The first lane's mean is near enough: of k values among
// n it is within sqrt(n / k) standard deviations, which costs some bits of float32 at worst.
template <typename T, int kVector, bool kPooled>
constexpr int kBlocks = !kPooled && kVector * sizeof(T) == 16 && sizeof(T) == 2 ? 5 : 4;

template <typename T, int kVector, bool kPooled>
__global__ void __launch_bounds__(kThreads, kBlocks<T, kVector, kPooled>)
    layer_norm_kernel(const Params p) {
  constexpr int kKept = kKeptValues / kVector, kStep = kVector * arch::kWarp;
  using Kept = std::conditional_t<kPooled, float, T>;
  arch::griddepcontrol_launch_dependents();
  arch::griddepcontrol_wait();
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / arch::kWarp;
  if (row >= p.rows) return;
  const int column = kVector * static_cast<int>(threadIdx.x % arch::kWarp);
  const int rest = column + kKept * kStep;  // the first column that is not kept
  const Source<T> source(p, row);

  Vector<Kept, kVector> kept[kKept] = {};
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    const int c = column + i * kStep;
    if (c >= p.width) continue;
    if constexpr (kPooled) {
      kept[i] = rounded<float>(source.template mean<kVector>(c));
    } else {
      kept[i] = load<kVector>(source.at(0) + c);
    }
  }
  float sum = 0;
  int count = 0;
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (column + i * kStep < p.width) count += kVector;
    for (const float value : to_floats(kept[i]).at) sum += value;
  }
  const float near = __shfl_sync(arch::kAllLanes, sum / static_cast<float>(count), 0);

  float deviations = 0, squares = 0;
  const auto add = [&](const Floats<kVector>& t) {
#pragma unroll
    for (const float value : t.at) {
      const float v = value - near;
      deviations += v;
      squares += v * v;
    }
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (column + i * kStep < p.width) add(to_floats(kept[i]));
  }
#pragma unroll 1
  for (int c = rest; c < p.width; c += kStep) add(source.template mean<kVector>(c));
  const auto width = static_cast<float>(p.width);
  const float drift = arch::sum_lanes(deviations) / width;
  const float scale = 1.0f / sqrtf(arch::sum_lanes(squares) / width - drift * drift + p.eps);

  const auto finish = [&](int c, Floats<kVector> t) {
    const Floats<kVector> weight = to_floats(load<kVector>(static_cast<const T*>(p.weight) + c));
    const Floats<kVector> bias = to_floats(load<kVector>(static_cast<const T*>(p.bias) + c));
#pragma unroll
    for (int k = 0; k < kVector; ++k) {
      t.at[k] = (t.at[k] - near - drift) * scale * weight.at[k] + bias.at[k];
    }
    store(static_cast<T*>(p.out) + row * p.width + c, rounded<T>(t));
  };
#pragma unroll
  for (int i = 0; i < kKept; ++i) {
    if (column + i * kStep < p.width) finish(column + i * kStep, to_floats(kept[i]));
  }
#pragma unroll 1
  for (int c = rest; c < p.width; c += kStep) finish(c, source.template mean<kVector>(c));
}

template <typename T, int kVector>
void run(const Call& call, const Params& p) {
  const dim3 grid(static_cast<unsigned>((p.rows + kRows - 1) / kRows));
  if (p.pooled != nullptr) {
    call.launch_early<layer_norm_kernel<T, kVector, true>>(grid, kThreads, 0, p);
  } else {
    call.launch_early<layer_norm_kernel<T, kVector, false>>(grid, kThreads, 0, p);
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
  const bool wide = rows_align(x) && rows_align(weight) && rows_align(bias) && rows_align(out);
  with_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (wide) {
      run<T, kWidest<T>>(call, p);
    } else {
      run<T, 1>(call, p);
    }
  });
}

}  // namespace afnext::cuda
