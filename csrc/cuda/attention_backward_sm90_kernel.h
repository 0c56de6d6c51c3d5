// Backward attention by wgmma, Hopper's tensor cores: as attention_backward_kernel.h, but
// warpgroups multiply 64 kept rows at a time, what is kept and what streams past come straight from
// shared memory, and products run under the softmax: those of y and w under the weights, those of
// the weights and w under the gradients of scores. A block's warpgroups fill each other's gaps.
#pragma once

#include "cuda/arch/barrier.h"
#include "cuda/arch/wgmma.h"
#include "cuda/attention_backward_block.h"

namespace afnext::cuda {

// Rows of 16-bit elements as wgmma reads them: pieces of 64 channels, whose rows of 128 bytes are
// swizzled.
template <int kRows, int kDim>
struct alignas(1024) WgmmaTile {
  static constexpr int kPiece = 64;
  static constexpr uint32_t kPieceBytes = kRows * kPiece * 2, kEightRows = 8 * kPiece * 2;

  uint16_t elements[kRows * kDim];

  AFNEXT_DEVICE uint16_t* at(int row, int chunk) {
    return elements + chunk / 8 * kRows * kPiece + row * kPiece + 8 * (chunk % 8 ^ row % 8);
  }
  // Of the rows from 8 i on, the 16 channels from 16 k on: k of a product.
  AFNEXT_DEVICE uint64_t channels(int row, int k) const {
    constexpr int kSteps = kPiece / 16;
    const uint32_t at = k / kSteps * kPieceBytes + k % kSteps * 32;
    return descriptor(row) + at / 16;
  }
  // From `row` on the 16 rows from 16 k on: k of a product whose n are the channels.
  AFNEXT_DEVICE uint64_t rows(int row, int k) const { return descriptor(row + 16 * k); }

 private:
  AFNEXT_DEVICE uint64_t descriptor(int row) const {
    return arch::wgmma_descriptor(elements + row * kPiece, arch::Swizzle::bytes128, kPieceBytes,
                                  kEightRows);
  }
};

// kM of KeptRows is 1: a register array [1][n / 8][4] is a product's [n / 2].
template <int kN>
AFNEXT_DEVICE float (&flat(float (&sums)[1][kN][4]))[4 * kN] {
  return reinterpret_cast<float (&)[4 * kN]>(sums);
}

template <int kDim_, int kWarps, int kColumns_, int kStep_>
struct WgmmaShape {
  static constexpr int kDim = kDim_, kColumns = kColumns_, kStep = kStep_;
  static constexpr int kWarpRows = 16, kGroupRows = 64;
  static constexpr int kThreads = arch::kWarp * kWarps, kRows = kWarps * kWarpRows;

  struct Stage {
    WgmmaTile<kColumns, kDim> u, w;
    float2 softmax[kColumns];
  };
  struct Shared {
    WgmmaTile<kRows, kDim> x, y;
    Stage stages[2];
  };

  AFNEXT_DEVICE static void wait() {
    arch::cp_async_wait_group<0>();
    arch::fence_proxy_async();
  }

  template <typename T, typename Side, Sums kSums>
  AFNEXT_DEVICE static void meet(const BackwardParams& p, const KeptRows<Side, 1>& kept, int first,
                                 const Shared& shared, const Stage& stage, int step, int warp_row,
                                 float (&grad_x)[1][kDim / 8][4], float (&grad_y)[1][kDim / 8][4]) {
    constexpr auto kK = arch::Major::k, kMn = arch::Major::mn;
    const int row = warp_row / kGroupRows * kGroupRows;
    float weights[1][kStep / 8][4], grads[1][kStep / 8][4];
    uint32_t left[kStep / 16][4];
    arch::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      arch::wgmma_mma_async<kK, kK>(flat(weights), shared.x.channels(row, k),
                                    stage.u.channels(step, k), k > 0, T{});
    }
    arch::wgmma_commit_group();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      arch::wgmma_mma_async<kK, kK>(flat(grads), shared.y.channels(row, k),
                                    stage.w.channels(step, k), k > 0, T{});
    }
    arch::wgmma_commit_group();
    arch::wgmma_wait_group<1>();
    arch::hold(flat(weights));
    weigh(weights, p, kept, first, stage.softmax + step);
    if constexpr (kSums == Sums::both) {
#pragma unroll
      for (int k = 0; k < kStep / 16; ++k) pack_columns<T>(weights[0], k, left[k]);
      arch::wgmma_fence();
#pragma unroll
      for (int k = 0; k < kStep / 16; ++k) {
        arch::wgmma_mma_async<kMn>(flat(grad_y), left[k], stage.w.rows(step, k), true, T{});
      }
      arch::wgmma_commit_group();
      arch::wgmma_wait_group<1>();
    } else {
      arch::wgmma_wait_group<0>();
    }
    arch::hold(flat(grads));
    differentiate(grads, weights, kept, stage.softmax + step);
    uint32_t grads_left[kStep / 16][4];
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) pack_columns<T>(grads[0], k, grads_left[k]);
    arch::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kStep / 16; ++k) {
      arch::wgmma_mma_async<kMn>(flat(grad_x), grads_left[k], stage.u.rows(step, k), true, T{});
    }
    arch::wgmma_commit_group();
    arch::wgmma_wait_group<0>();
    arch::hold(flat(grad_x));
    if constexpr (kSums == Sums::both) arch::hold(flat(grad_y));
  }
};

template <typename T, typename Shape, typename Side, Sums kSums>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_backward_sm90_kernel(const BackwardParams p) {
  if constexpr (arch::kSm90a) {
    backward_block<T, Shape, Side, kSums>(p);
  } else {
    arch::trap();
  }
}

}  // namespace afnext::cuda
