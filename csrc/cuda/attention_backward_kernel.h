// Backward attention on the tensor cores of sm_80 and newer.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/matrix.h"
#include "cuda/attention_backward_output.h"

namespace afnext::cuda {

// A block's warps keep kWarpRows rows each, kColumns stream past at a time, twice buffered, and
// meet the rows kStep at a time.
template <int kDim_, int kWarps_, int kWarpRows_, int kColumns_, int kStep_>
struct BackwardShape {
  static constexpr int kDim = kDim_, kWarps = kWarps_, kWarpRows = kWarpRows_, kColumns = kColumns_,
                       kStep = kStep_;
  static constexpr int kThreads = arch::kWarp * kWarps, kRows = kWarps * kWarpRows;

  struct Stage {
    uint16_t u[kColumns * kDim], w[kColumns * kDim];
    float2 softmax[kColumns];
  };
  struct Shared {
    uint16_t x[kRows * kDim], y[kRows * kDim];
    Stage stages[2];
  };
};

// Where a row's chunk of 16 bytes lies in shared memory: chunks change places so that eight rows of
// one chunk, which is what ldmatrix reads at a time, fall into eight different groups of banks.
template <int kDim>
AFNEXT_DEVICE int swizzled(int row, int chunk) {
  static_assert(kDim % 32 == 0);
  const int turn = kDim % 64 == 0 ? row & 7 : row >> 1 & 3;
  return row * kDim + (chunk ^ turn) * 8;
}

// The rows from `first` of a and b to shared memory, zeros from `end` on and beyond `width`.
template <typename Shape, int kCount, typename Places>
AFNEXT_DEVICE void load_rows(uint16_t* to_a, const Heads& a, uint16_t* to_b, const Heads& b,
                             const Places& places, int first, int end, int width) {
  constexpr int kChunks = Shape::kDim / 8, kLoads = kCount * kChunks / Shape::kThreads;
  static_assert(kCount * kChunks % Shape::kThreads == 0);
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int item = i * Shape::kThreads + static_cast<int>(threadIdx.x);
    const int row = item / kChunks, chunk = item % kChunks;
    const bool real = first + row < end && 8 * chunk < width;
    const Place from = places(real ? first + row : first);
    const int to = swizzled<Shape::kDim>(row, chunk);
    const int channel = real ? 8 * chunk : 0, bytes = real ? 16 : 0;
    arch::cp_async<16>(to_a + to,
                       static_cast<const uint16_t*>(a.data) + a.at(from.token, from.head) + channel,
                       bytes);
    arch::cp_async<16>(to_b + to,
                       static_cast<const uint16_t*>(b.data) + b.at(from.token, from.head) + channel,
                       bytes);
  }
}

// sums += a b^T, rows of a and of b in shared memory. Unrolled all the way its addresses would not
// fit into the registers that the sums leave.
template <typename T, int kDim, int kM, int kN>
AFNEXT_DEVICE void multiply_rows(float (&sums)[kM][kN][4], const uint16_t* a, const uint16_t* b) {
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
#pragma unroll 2
  for (int k = 0; k < kDim / 16; ++k) {
    uint32_t left[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      arch::ldmatrix(left[m], a + swizzled<kDim>(16 * m + lane % 16, (2 * k) ^ (lane / 16)));
    }
#pragma unroll
    for (int n = 0; n < kN; n += 2) {
      uint32_t right[4];
      const int row = 8 * n + lane / 16 * 8 + lane % 8;
      arch::ldmatrix(right, b + swizzled<kDim>(row, (2 * k) ^ (lane / 8 % 2)));
      const uint32_t even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        arch::mma_sync(sums[m][n], left[m], even, T{});
        arch::mma_sync(sums[m][n + 1], left[m], odd, T{});
      }
    }
  }
}

// sums += a b, a where products leave their results, b's rows in shared memory.
template <typename T, int kDim, int kM, int kN>
AFNEXT_DEVICE void add_product(float (&sums)[kM][kDim / 8][4], const float (&a)[kM][kN][4],
                               const uint16_t* b) {
  const int lane = static_cast<int>(threadIdx.x) % arch::kWarp;
#pragma unroll
  for (int k = 0; k < kN / 2; ++k) {
    uint32_t left[kM][4];
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const auto &near = a[m][2 * k], &far = a[m][2 * k + 1];
      left[m][0] = arch::pack(near[0], near[1], T{});
      left[m][1] = arch::pack(near[2], near[3], T{});
      left[m][2] = arch::pack(far[0], far[1], T{});
      left[m][3] = arch::pack(far[2], far[3], T{});
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; n += 2) {
      uint32_t right[4];
      arch::ldmatrix_transposed(right, b + swizzled<kDim>(16 * k + lane % 16, n ^ (lane / 16)));
      const uint32_t even[2] = {right[0], right[1]}, odd[2] = {right[2], right[3]};
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        arch::mma_sync(sums[m][n], left[m], even, T{});
        arch::mma_sync(sums[m][n + 1], left[m], odd, T{});
      }
    }
  }
}

// What a thread knows of the rows that its warp keeps: its own are lane / 4 and 8 more in each 16.
template <typename Side, int kM>
struct KeptRows {
  Interval met{0, 0};  // by any of the warp
  Interval met_by_all{0, 0};
  float2 softmax[kM][2];  // where rows are what is kept

  // The rows [first, end).
  AFNEXT_DEVICE KeptRows(const BackwardWork& work, int first, int end) {
    if (first < end) {
      const Interval top = Side::met(work.meetings, first);
      const Interval bottom = Side::met(work.meetings, end - 1);
      met = {top.low, bottom.high};
      met_by_all = {bottom.low, top.high};
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int row = first + 16 * m + 8 * i + static_cast<int>(threadIdx.x) % arch::kWarp / 4;
        softmax[m][i] = {0, 0};
        if (!Side::kKeys && row < end) softmax[m][i] = work.softmax[row];
      }
    }
  }

  AFNEXT_DEVICE bool meets(int first, int end) const { return first < met.high && met.low < end; }
  AFNEXT_DEVICE bool meet_all(int first, int end) const {
    return met_by_all.low <= first && end <= met_by_all.high;
  }
};

// The columns from `first` on meet a warp's rows: `u`, `w` and `softmax` are the columns'.
template <typename T, typename Shape, typename Side, Sums kSums, int kM>
AFNEXT_DEVICE void meet(const BackwardParams& p, const KeptRows<Side, kM>& kept, int row, int first,
                        const uint16_t* x, const uint16_t* y, const uint16_t* u, const uint16_t* w,
                        const float2* softmax, float (&grad_x)[kM][Shape::kDim / 8][4],
                        float (&grad_y)[kM][Shape::kDim / 8][4]) {
  constexpr int kN = Shape::kStep / 8;
  const int column = 2 * (static_cast<int>(threadIdx.x) % 4);
  float weights[kM][kN][4] = {};
  multiply_rows<T, Shape::kDim>(weights, x, u);
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const float lse =
            Side::kKeys ? softmax[8 * n + column + i % 2].x : kept.softmax[m][i / 2].x;
        weights[m][n][i] = arch::exp2_approx(fmaf(weights[m][n][i], p.scale * kLog2E, -lse));
      }
    }
  }
  if (!kept.meet_all(first, first + Shape::kStep)) {
    // Read again: the loop has no registers for it.
    const Meetings meetings = BackwardWork(p, p.items[blockIdx.x]).meetings;
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int own = row + 16 * m + static_cast<int>(threadIdx.x) % arch::kWarp / 4;
      const Interval seen[2] = {Side::met(meetings, own), Side::met(meetings, own + 8)};
#pragma unroll
      for (int n = 0; n < kN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int at = first + 8 * n + column + i % 2;
          if (at < seen[i / 2].low || at >= seen[i / 2].high) weights[m][n][i] = 0.0f;
        }
      }
    }
  }
  if constexpr (kSums != Sums::x) add_product<T, Shape::kDim>(grad_y, weights, w);
  if constexpr (kSums != Sums::y) {
    float grads[kM][kN][4] = {};
    multiply_rows<T, Shape::kDim>(grads, y, w);
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          const float delta =
              Side::kKeys ? softmax[8 * n + column + i % 2].y : kept.softmax[m][i / 2].y;
          grads[m][n][i] = weights[m][n][i] * (grads[m][n][i] - delta);
        }
      }
    }
    add_product<T, Shape::kDim>(grad_x, grads, u);
  }
}

template <typename T, typename Shape, typename Side, Sums kSums>
__global__ void __launch_bounds__(Shape::kThreads)
    attention_backward_kernel(const BackwardParams p) {
  constexpr int kDim = Shape::kDim, kM = Shape::kWarpRows / 16;
  auto& shared = arch::shared_memory<typename Shape::Shared>();
  const BackwardWork work(p, p.items[blockIdx.x]);
  const auto& kept_place = Side::kept(work);
  const int end = smaller(work.first + Shape::kRows, Side::meeting(work.meetings));
  Interval span{0, 0};
  if (work.first < end) {
    span = {Side::met(work.meetings, work.first).low, Side::met(work.meetings, end - 1).high};
  }
  const auto load = [&](typename Shape::Stage& stage, int first) {
    load_rows<Shape, Shape::kColumns>(stage.u, Side::u(p), stage.w, Side::w(p),
                                      Side::streamed(work), first, span.high, p.width);
    const int column = static_cast<int>(threadIdx.x);
    if (Side::kKeys && column < Shape::kColumns) {
      const bool real = first + column < span.high;
      arch::cp_async<8>(stage.softmax + column, work.softmax + (real ? first + column : first),
                        real ? 8 : 0);
    }
    arch::cp_async_commit_group();
  };

  const int warp_row = static_cast<int>(threadIdx.x) / arch::kWarp * Shape::kWarpRows;
  const KeptRows<Side, kM> kept(work, work.first + warp_row,
                                smaller(work.first + warp_row + Shape::kWarpRows, end));
  float grad_x[kM][kDim / 8][4] = {}, grad_y[kM][kDim / 8][4] = {};
  if (span.low < span.high) {
    load_rows<Shape, Shape::kRows>(shared.x, Side::x(p), shared.y, Side::y(p), kept_place,
                                   work.first, end, p.width);
    load(shared.stages[0], span.low);
  }
  int turn = 0;
#pragma unroll 1
  for (int first = span.low; first < span.high; first += Shape::kColumns, turn ^= 1) {
    arch::cp_async_wait_group<0>();
    __syncthreads();  // everyone's copies are there, and everyone has left the other stage
    if (first + Shape::kColumns < span.high) load(shared.stages[turn ^ 1], first + Shape::kColumns);
    const auto& stage = shared.stages[turn];
#pragma unroll 1
    for (int step = 0; step < Shape::kColumns; step += Shape::kStep) {
      if (!kept.meets(first + step, first + step + Shape::kStep)) continue;
      meet<T, Shape, Side, kSums>(p, kept, work.first + warp_row, first + step,
                                  shared.x + warp_row * kDim, shared.y + warp_row * kDim,
                                  stage.u + step * kDim, stage.w + step * kDim,
                                  stage.softmax + step, grad_x, grad_y);
    }
  }
  __syncthreads();  // the gradients take the place of all that was read

  // What the loop has no register for is read once more.
  const BackwardWork done(p, p.items[blockIdx.x]);
  const int row = static_cast<int>(threadIdx.x) / arch::kWarp * Shape::kWarpRows;
  const GradientRows rows{done.first + row, Side::meeting(done.meetings),
                          Side::count(done.meetings, done.keys)};
  if constexpr (kSums != Sums::y) {
    write_gradient<T, Shape>(grad_x, p.scale, p, rows, Side::kept(done), Side::grad_x(p),
                             Side::heads(p), Side::times(p));
  }
  if constexpr (kSums != Sums::x) {
    write_gradient<T, Shape>(grad_y, 1.0f, p, rows, Side::kept(done), p.grad_v, Side::heads(p),
                             nullptr);
  }
}

}  // namespace afnext::cuda
