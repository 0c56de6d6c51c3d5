// RMS norm, alone or behind a residual addition: a block a row, one read and one write of it.
//
// Bytes: 2 D a row in 16 bits (4 D with residual and total), arithmetic is free beside them. A row
// stays in registers between the sum of squares and the scaling: kVectors chunks of 16 bytes a
// thread, 256 threads, so that 3,584 columns take 2 chunks of 224 threads. Rows that are longer or
// not aligned to 16 bytes are read twice, the second time from the L1.
#include "cuda/arch/call.h"
#include "cuda/arch/copy.h"
#include "cuda/arch/numbers.h"
#include "cuda/arch/warp.h"
#include "cuda/dispatch.h"
#include "cuda/rms_norm.h"

namespace afnext::cuda {
namespace {

constexpr int kThreads = 256;

struct Params {
  const void *x, *residual, *weight;
  void *out, *total;
  int64_t x_stride, residual_stride;  // elements
  int width;
  float eps;
};

struct Shared {
  float sums[kThreads / arch::kWarp];
};

// Over the block; every thread gets the same bits.
AFNEXT_DEVICE float block_sum(float x) {
  auto& shared = arch::shared_memory<Shared>();
  x = arch::sum_lanes(x);
  if (threadIdx.x % arch::kWarp == 0) shared.sums[threadIdx.x / arch::kWarp] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (const float part : shared.sums) sum += part;
  return sum;
}

// The elements of a row that a thread owns: every kThreads-th group of kVector.
template <typename T, int kVector, bool kResidual>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const Params p) {
  struct alignas(sizeof(T) * kVector) Vector {
    T at[kVector];
  };
  const auto row = static_cast<int64_t>(blockIdx.x);
  const auto* x = static_cast<const T*>(p.x) + row * p.x_stride;
  const auto* residual = static_cast<const T*>(p.residual) + row * p.residual_stride;
  const auto* weight = static_cast<const T*>(p.weight);
  auto* out = static_cast<T*>(p.out) + row * p.width;
  auto* total = static_cast<T*>(p.total) + row * p.width;
  constexpr int kKept = 2;  // vectors of a thread that stay in registers
  Vector kept[kKept];
  float squares = 0;
  int turn = 0;
#pragma unroll 1
  for (int first = kVector * threadIdx.x; first < p.width; first += kVector * kThreads, ++turn) {
    Vector t = *reinterpret_cast<const Vector*>(x + first);
    if constexpr (kResidual) {
      const Vector r = *reinterpret_cast<const Vector*>(residual + first);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        t.at[i] = arch::rounded<T>(arch::to_float(t.at[i]) + arch::to_float(r.at[i]));
      }
      *reinterpret_cast<Vector*>(total + first) = t;
    }
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float value = arch::to_float(t.at[i]);
      squares += value * value;
    }
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (turn == i) kept[i] = t;
    }
  }
  const float scale = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(p.width) + p.eps);
  turn = 0;
#pragma unroll 1
  for (int first = kVector * threadIdx.x; first < p.width; first += kVector * kThreads, ++turn) {
    Vector t;
    if (turn >= kKept) {
      t = *reinterpret_cast<const Vector*>((kResidual ? total : x) + first);
    }
#pragma unroll
    for (int i = 0; i < kKept; ++i) {
      if (turn == i) t = kept[i];
    }
    const Vector w = *reinterpret_cast<const Vector*>(weight + first);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float normed = arch::to_float(arch::rounded<T>(arch::to_float(t.at[i]) * scale));
      t.at[i] = arch::rounded<T>(normed * arch::to_float(w.at[i]));
    }
    *reinterpret_cast<Vector*>(out + first) = t;
  }
}

template <typename T, int kVector>
void run(const Call& call, int64_t rows, const Params& p) {
  const dim3 grid(static_cast<unsigned>(rows));
  if (p.residual != nullptr) {
    call.launch<rms_norm_kernel<T, kVector, true>>(grid, kThreads, sizeof(Shared), p);
  } else {
    call.launch<rms_norm_kernel<T, kVector, false>>(grid, kThreads, sizeof(Shared), p);
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
                 static_cast<int>(x.last()),
                 static_cast<float>(eps)};
  const bool wide = rows_align(x) && (!residual || rows_align(*residual)) && rows_align(out) &&
                    rows_align(weight) && (!total || rows_align(*total));
  with_dtype(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    if (wide) {
      run<T, 16 / sizeof(T)>(call, x.rows(), p);
    } else {
      run<T, 1>(call, x.rows(), p);
    }
  });
}

}  // namespace afnext::cuda
