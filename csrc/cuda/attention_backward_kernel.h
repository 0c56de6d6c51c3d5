// Backward attention by mma.sync: the tensor cores of sm_80 and newer.
#pragma once

#include "cuda/arch/matrix.h"
#include "cuda/attention_backward_block.h"

namespace afnext::cuda {

// Where a row's chunk of 16 bytes lies in shared memory: chunks change places so that eight rows of
// one chunk, which is what ldmatrix reads at a time, fall into eight different groups of banks.
template <int kDim>
AFNEXT_DEVICE int swizzled(int row, int chunk) {
  static_assert(kDim % 32 == 0);
  const int turn = kDim % 64 == 0 ? row & 7 : row >> 1 & 3;
  return row * kDim + (chunk ^ turn) * 8;
}

template <int kRows, int kDim>
struct MmaTile {
  uint16_t elements[kRows * kDim];

  AFNEXT_DEVICE uint16_t* at(int row, int chunk) { return elements + swizzled<kDim>(row, chunk); }
};

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
    for (int m = 0; m < kM; ++m) pack_columns<T>(a[m], k, left[m]);
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

// A block's warps keep kWarpRows rows each, kColumns stream past
// at a time, twice buffered, and meet the rows kStep at a time.
template <int kDim_, int kWarps_, int kWarpRows_, int kColumns_, int kStep_>
struct MmaShape {
  static constexpr int kDim = kDim_, kWarps = kWarps_, kWarpRows = kWarpRows_, kColumns = kColumns_,
                       kStep = kStep_;
  static constexpr int kThreads = arch::kWarp * kWarps, kRows = kWarps * kWarpRows;
  static constexpr int kGroupRows = kWarpRows;

  struct Stage {
    MmaTile<kColumns, kDim> u, w;
    float2 softmax[kColumns];
  };
  struct Shared {
    MmaTile<kRows, kDim> x, y;
    Stage stages[2];
  };

  AFNEXT_DEVICE static void wait() { arch::cp_async_wait_group<0>(); }

  template <typename T, typename Side, Sums kSums, int kM>
  AFNEXT_DEVICE static void meet(const BackwardParams& p, const KeptRows<Side, kM>& kept, int first,
                                 const Shared& shared, const Stage& stage, int step, int warp_row,
                                 float (&grad_x)[kM][kDim / 8][4],
                                 float (&grad_y)[kM][kDim / 8][4]) {
    const uint16_t *u = stage.u.elements + step * kDim, *w = stage.w.elements + step * kDim;
    float weights[kM][kStep / 8][4] = {};
    multiply_rows<T, kDim>(weights, shared.x.elements + warp_row * kDim, u);
    weigh(weights, p, kept, first, stage.softmax + step);
    if constexpr (kSums != Sums::x) add_product<T, kDim>(grad_y, weights, w);
    if constexpr (kSums != Sums::y) {
      float grads[kM][kStep / 8][4] = {};
      multiply_rows<T, kDim>(grads, shared.y.elements + warp_row * kDim, w);
      differentiate(grads, weights, kept, stage.softmax + step);
      add_product<T, kDim>(grad_x, grads, u);
    }
  }
};

template <typename T, typename Shape, typename Side, Sums kSums>
__global__ void __launch_bounds__(Shape::kThreads)
    attention_backward_kernel(const BackwardParams p) {
  backward_block<T, Shape, Side, kSums>(p);
}

}  // namespace afnext::cuda
