// A block of backward attention, whatever multiplies: what it keeps, what streams past, the softmax
// between the products.
//
// A Shape has
//   kDim, kThreads, kRows       a block's channels, threads and kept rows
//   kWarpRows                   of them a warp's
//   kGroupRows                  of them those whose warps multiply together
//   kColumns, kStep             what a stage brings, and how much of it is met at a time
//   Shared                      x, y, two stages of u, w and softmax; a tile's at(row, chunk) is
//                               where 16 bytes of a row lie
//   wait()                      until the thread's copies are there for whoever multiplies
//   meet<T, Side, kSums>(..)    adds to the gradients what a step of columns brings
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/attention_backward_output.h"

namespace afnext::cuda {

// The rows from `first` of a and b to shared memory, zeros from `end` on and beyond `dim`.
template <typename Shape, int kCount, typename Tile, typename Places>
AFNEXT_DEVICE void load_rows(Tile& to_a, const Heads& a, Tile& to_b, const Heads& b,
                             const Places& places, int first, int end, int dim) {
  constexpr int kChunks = Shape::kDim / 8, kLoads = kCount * kChunks / Shape::kThreads;
  static_assert(kCount * kChunks % Shape::kThreads == 0);
  const int thread = arch::opaque(static_cast<int>(threadIdx.x));  // or places wait in registers
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int item = i * Shape::kThreads + thread;
    const int row = item / kChunks, chunk = item % kChunks;
    const bool real = first + row < end && 8 * chunk < dim;
    const Place from = places(real ? first + row : first);
    const int channel = real ? 8 * chunk : 0, bytes = real ? 16 : 0;
    arch::cp_async<16>(to_a.at(row, chunk),
                       static_cast<const uint16_t*>(a.data) + a.at(from.token, from.head) + channel,
                       bytes);
    arch::cp_async<16>(to_b.at(row, chunk),
                       static_cast<const uint16_t*>(b.data) + b.at(from.token, from.head) + channel,
                       bytes);
  }
}

// What a thread knows of the rows that its warp keeps: its own are lane / 4 and 8 more in each 16.
template <typename Side, int kM>
struct KeptRows {
  Interval met{0, 0}, met_by_all{0, 0};  // by those that multiply together
  float2 softmax[kM][2];                 // where rows are what is kept

  // The rows [first, end) multiply together.
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
        const int row = own(work) + 16 * m + 8 * i;
        softmax[m][i] = {0, 0};
        if (!Side::kKeys && row < end) softmax[m][i] = work.softmax[row];
      }
    }
  }

  // The thread's first row.
  AFNEXT_DEVICE static int own(const BackwardWork& work) {
    const int thread = static_cast<int>(threadIdx.x);
    return work.first + thread / arch::kWarp * 16 * kM + thread % arch::kWarp / 4;
  }
  AFNEXT_DEVICE bool meets(int first, int end) const { return first < met.high && met.low < end; }
  AFNEXT_DEVICE bool meet_all(int first, int end) const {
    return met_by_all.low <= first && end <= met_by_all.high;
  }
};

// From scores to weights, 0 where row and column do not meet: the columns begin at `first`.
template <typename Side, int kM, int kN>
AFNEXT_DEVICE void weigh(float (&scores)[kM][kN][4], const BackwardParams& p,
                         const KeptRows<Side, kM>& kept, int first, const float2* softmax) {
  const int column = 2 * (static_cast<int>(threadIdx.x) % 4);
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const float lse =
            Side::kKeys ? softmax[8 * n + column + i % 2].x : kept.softmax[m][i / 2].x;
        scores[m][n][i] = arch::exp2_approx(fmaf(scores[m][n][i], p.scale * kLog2E, -lse));
      }
    }
  }
  if (kept.meet_all(first, first + 8 * kN)) return;
  // Read again: the loop has no registers for it.
  const BackwardWork work(p, p.items[blockIdx.x]);
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    const int own = kept.own(work) + 16 * m;
    const Interval seen[2] = {Side::met(work.meetings, own), Side::met(work.meetings, own + 8)};
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = first + 8 * n + column + i % 2;
        if (at < seen[i / 2].low || at >= seen[i / 2].high) scores[m][n][i] = 0.0f;
      }
    }
  }
}

// From the gradients of weights to those of scores.
template <typename Side, int kM, int kN>
AFNEXT_DEVICE void differentiate(float (&grads)[kM][kN][4], const float (&weights)[kM][kN][4],
                                 const KeptRows<Side, kM>& kept, const float2* softmax) {
  const int column = 2 * (static_cast<int>(threadIdx.x) % 4);
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
}

// Columns 16 k on, packed as the left side of a product.
template <typename T, int kN>
AFNEXT_DEVICE void pack_columns(const float (&sums)[kN][4], int k, uint32_t (&packed)[4]) {
  const auto &near = sums[2 * k], &far = sums[2 * k + 1];
  packed[0] = arch::pack(near[0], near[1], T{});
  packed[1] = arch::pack(near[2], near[3], T{});
  packed[2] = arch::pack(far[0], far[1], T{});
  packed[3] = arch::pack(far[2], far[3], T{});
}

template <typename T, typename Shape, typename Side, Sums kSums>
AFNEXT_DEVICE void backward_block(const BackwardParams& p) {
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
                                      Side::streamed(work), first, span.high, p.dim);
    const int column = static_cast<int>(threadIdx.x);
    if (Side::kKeys && column < Shape::kColumns) {
      const bool real = first + column < span.high;
      arch::cp_async<8>(stage.softmax + column, work.softmax + (real ? first + column : first),
                        real ? 8 : 0);
    }
    arch::cp_async_commit_group();
  };

  const int warp_row = static_cast<int>(threadIdx.x) / arch::kWarp * Shape::kWarpRows;
  const int group_first = work.first + warp_row / Shape::kGroupRows * Shape::kGroupRows;
  const KeptRows<Side, kM> kept(work, group_first, smaller(group_first + Shape::kGroupRows, end));
  float grad_x[kM][kDim / 8][4] = {}, grad_y[kM][kDim / 8][4] = {};
  if (span.low < span.high) {
    load_rows<Shape, Shape::kRows>(shared.x, Side::x(p), shared.y, Side::y(p), kept_place,
                                   work.first, end, p.dim);
    load(shared.stages[0], span.low);
  }
  int turn = 0;
#pragma unroll 1
  for (int first = span.low; first < span.high; first += Shape::kColumns, turn ^= 1) {
    Shape::wait();
    __syncthreads();  // everyone's copies are there, and everyone has left the other stage
    if (first + Shape::kColumns < span.high) load(shared.stages[turn ^ 1], first + Shape::kColumns);
    const auto& stage = shared.stages[turn];
#pragma unroll 1
    for (int step = 0; step < Shape::kColumns; step += Shape::kStep) {
      if (!kept.meets(first + step, first + step + Shape::kStep)) continue;
      Shape::template meet<T, Side, kSums>(p, kept, first + step, shared, stage, step, warp_row,
                                           grad_x, grad_y);
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
