// RMS norm, alone or behind a residual addition: one read and one write of a row.
//
// Bytes: 4 D a row in 16 bits (8 D with residual and total). A thread holds kTurns vectors of 16
// bytes of its row, all requested before the first is used, and as many of the weight, requested
// before the sum over the row, so that a decoding step of few rows waits for memory once. 64
// registers (88 with a residual), so 1,024 threads an SM (640) and 64 to 80 KB in flight, where an
// H200's 4.3 TB/s at some 800 ns over 132 SMs ask for 26. 3,584 columns in 16 bits are 448 vectors,
// 4 warps; a row of up to 1,024 such columns is one warp's, 8 rows a block, and needs no barrier.
// Rows of more than 8,192 columns are read twice, the second time from the caches.
//
// On an H200, bf16, 8,192 rows of 3,584: 33.6 us, 82 % of a copy's bandwidth; with a residual 58.9
// us, 93 %; one row with a residual 2.4 us.
#include <algorithm>

#include "cuda/arch/call.h"
#include "cuda/arch/griddepcontrol.h"
#include "cuda/arch/warp.h"
#include "cuda/dispatch.h"
#include "cuda/rms_norm.h"
#include "cuda/vector.h"

namespace afnext::cuda {
namespace {

constexpr int kMaxThreads = 256;
constexpr int kTurns = 4;
constexpr int kNarrowRows = 8;  // a block, where a row is one warp's

struct Params {
  const void *x, *residual, *weight;
  void *out, *total;
  int64_t x_stride, residual_stride;  // elements
  int64_t rows;
  int width;
  float eps;
};

struct Shared {
  float sums[kMaxThreads / arch::kWarp];
};

// Over the threads of a row; each gets the same bits.
AFNEXT_DEVICE float row_sum(float x) {
  x = arch::sum_lanes(x);
  const int warps = static_cast<int>(blockDim.x) / arch::kWarp;
  if (warps == 1) return x;
  auto& shared = arch::shared_memory<Shared>();
  if (threadIdx.x % arch::kWarp == 0) shared.sums[threadIdx.x / arch::kWarp] = x;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < warps; ++i) sum += shared.sums[i];
  return sum;
}

// A thread's vectors of a row: every blockDim.x-th from `first`.
template <typename T, int kVector>
struct Part {
  Vector<T, kVector> at[kTurns];

  AFNEXT_DEVICE static int column(int first, int turn) {
    return first + turn * static_cast<int>(blockDim.x) * kVector;
  }
  AFNEXT_DEVICE void read(const T* row, int first, int width) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (column(first, turn) < width) at[turn] = load<kVector>(row + column(first, turn));
    }
  }
  AFNEXT_DEVICE void write(T* row, int first, int width) const {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (column(first, turn) < width) store(row + column(first, turn), at[turn]);
    }
  }
  AFNEXT_DEVICE void add(const Part& other) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      Floats<kVector> sum = to_floats(at[turn]);
      const Floats<kVector> more = to_floats(other.at[turn]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum.at[i] += more.at[i];
      at[turn] = rounded<T>(sum);
    }
  }
  AFNEXT_DEVICE float squares(int first, int width) const {
    float sum = 0;
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (column(first, turn) < width) {
        for (const float value : to_floats(at[turn]).at) sum += value * value;
      }
    }
    return sum;
  }
  AFNEXT_DEVICE void scale(float by, const Part& weight) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      Floats<kVector> x = to_floats(at[turn]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) x.at[i] *= by;
      x = to_floats(rounded<T>(x));
      const Floats<kVector> w = to_floats(weight.at[turn]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) x.at[i] *= w.at[i];
      at[turn] = rounded<T>(x);
    }
  }
};

template <typename T, int kVector, bool kResidual>
__global__ void __launch_bounds__(kMaxThreads, kResidual ? 2 : 4) rms_norm_kernel(const Params p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  arch::griddepcontrol_launch_dependents();
  arch::griddepcontrol_wait();
  if (row >= p.rows) return;  // where a row is one warp's, else never
  const auto* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const auto* weight = static_cast<const T*>(p.weight);
  auto* out = static_cast<T*>(p.out) + row * p.width;
  auto* total = static_cast<T*>(p.total) + row * p.width;
  const int mine = static_cast<int>(threadIdx.x) * kVector;
  const int span = static_cast<int>(blockDim.x) * kVector * kTurns;
  Part<T, kVector> t{}, w{};
  w.read(weight, mine, p.width);
  float squares = 0;
#pragma unroll 1
  for (int first = mine; first < p.width; first += span) {
    t.read(x, first, p.width);
    if constexpr (kResidual) {
      Part<T, kVector> r{};
      r.read(static_cast<const T*>(p.residual) + row * p.residual_stride, first, p.width);
      t.add(r);
      t.write(total, first, p.width);
    }
    squares += t.squares(first, p.width);
  }
  const float scale = 1.0f / sqrtf(row_sum(squares) / static_cast<float>(p.width) + p.eps);
#pragma unroll 1
  for (int first = mine; first < p.width; first += span) {
    if (p.width > span) {
      t.read(kResidual ? total : x, first, p.width);
      w.read(weight, first, p.width);
    }
    t.scale(scale, w);
    t.write(out, first, p.width);
  }
}

template <typename T, int kVector>
void run(const Call& call, const Params& p) {
  const int vectors = (p.width + kVector - 1) / kVector;
  const int warps = std::clamp((vectors + kTurns * arch::kWarp - 1) / (kTurns * arch::kWarp), 1,
                               kMaxThreads / arch::kWarp);
  const int rows = warps == 1 ? kNarrowRows : 1;
  const dim3 grid(static_cast<unsigned>((p.rows + rows - 1) / rows)),
      block(static_cast<unsigned>(warps * arch::kWarp), static_cast<unsigned>(rows));
  if (p.residual != nullptr) {
    call.launch_early<rms_norm_kernel<T, kVector, true>>(grid, block, sizeof(Shared), p);
  } else {
    call.launch_early<rms_norm_kernel<T, kVector, false>>(grid, block, sizeof(Shared), p);
  }
}

}  // namespace

void rms_norm(const TensorView& x, const TensorView* residual, const TensorView& weight, double eps,
              const TensorView& out, const TensorView* total, Stream stream) {
  const Call call("rms_norm", x, stream);
  const Params p{x.data,
                 residual ? residual->data : nullptr,
                 weight.data,
                 out.data,
                 total ? total->data : nullptr,
                 x.row_stride(),
                 residual ? residual->row_stride() : 0,
                 x.rows(),
                 static_cast<int>(x.last()),
                 static_cast<float>(eps)};
  const bool wide = rows_align(x) && (!residual || rows_align(*residual)) && rows_align(out) &&
                    rows_align(weight) && (!total || rows_align(*total));
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
