// out = activation(x @ W^T + bias) + residual for a few rows of x: each weight is read once, and
// that is what it costs.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/griddepcontrol.h"
#include "cuda/arch/matrix.h"
#include "cuda/packed_linear_params.h"

namespace afnext::cuda {

constexpr int kNarrowWarps = 8;
constexpr int kNarrowThreads = kNarrowWarps * arch::kWarp;

template <typename W, int kColumns>
struct NarrowShared {
  // What a warp multiplies at a time: a step, of wide weights half of one.
  static constexpr int kBlocks = W::Values::kPieces == 8 ? 2 : 4;
  static constexpr int kPieces = W::Values::kPieces * kBlocks / kStepBlocks;
  struct Stage {
    uint4 values[kPieces][arch::kWarp];
    alignas(16) unsigned char scales[arch::kWarp][W::kScaleBytes > 0 ? W::kScaleBytes : 1];
  };
  static constexpr int kStageBytes = kPieces * kPieceStride * 16 + arch::kWarp * W::kScaleBytes;
  static constexpr int kMostStages = (80 << 10) / kNarrowWarps / kStageBytes;
  static constexpr int kStages = kMostStages > 12 ? 12 : kMostStages;
  static constexpr int kSums = 8 * kColumns * kTileRows * kNarrowWarps * (kColumns > 1 ? 2 : 4);
  Stage ring[kNarrowWarps][kStages];
  float sums[kSums];  // [tile][warp][row of x][row of W]
};

template <typename T, typename W, int kColumns>
class NarrowWarp {
 public:
  using Shared = NarrowShared<W, kColumns>;
  using Stage = typename Shared::Stage;
  static constexpr int kDepth = Shared::kBlocks * kBlockDepth;
  static constexpr int kAhead = Shared::kStages - 1;

  AFNEXT_DEVICE NarrowWarp(const LinearParams& p, Shared& shared, int first, int last)
      : p_(p),
        ring_(shared.ring[threadIdx.x / arch::kWarp]),
        lane_(threadIdx.x % arch::kWarp),
        units_(p.steps * (kStepDepth / kDepth)),
        unit_(threadIdx.x / arch::kWarp),
        left_((last - first) * units_ - unit_) {
    const auto unit = static_cast<int64_t>(first) * units_ + unit_;
    values_ = p.values + unit * kUnitBytes + 16 * lane_;
    scales_ = p.scales + (unit * 8 + lane_ / 4) * W::kScaleBytes;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      // Rows beyond the last read it again: their products are columns that nobody looks at.
      const int row = 8 * n + lane_ / 4;
      x_at_[n] = (row < p.rows ? row : p.rows - 1) * p.x_stride + lane_ % 4 * 8;
    }
  }

  AFNEXT_DEVICE void begin() {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) fetch(ring_[s]);
  }
  AFNEXT_DEVICE void load_x() {
    if (units_ == 0) return;
#pragma unroll
    for (int b = 0; b < Shared::kBlocks; ++b) load_x(b, unit_ % units_);
  }

  // The sums of the next tile.
  AFNEXT_DEVICE void multiply(float* sums, bool first_here) {
    float row_scale[2] = {1, 1};
    (void)first_here;
    clear();
#pragma unroll 1
    for (; unit_ < units_;) {
      arch::cp_async_wait_group<kAhead - 1>();
      fetch(ring_[free_]);
      int next = unit_ + kNarrowWarps;
      int x_unit = next;
      while (x_unit >= units_) x_unit -= units_;
      multiply(ring_[stage_], x_unit);
      unit_ = next;
      free_ = stage_;
      stage_ = stage_ + 1 == Shared::kStages ? 0 : stage_ + 1;
    }
    unit_ -= units_;
    (void)row_scale;
    store(sums);
  }

 private:
  static constexpr int kUnitBytes = Shared::kPieces * kPieceStride * 16;

  AFNEXT_DEVICE void clear() {
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < 4; ++i) sums_[n][h][i] = 0;
  }

  // Always one group of copies, so that waits count alike.
  AFNEXT_DEVICE void fetch(Stage& stage) {
    if (left_ > 0) {
#pragma unroll
      for (int i = 0; i < Shared::kPieces; ++i) {
        arch::cp_async<16>(&stage.values[i][lane_], values_ + i * kPieceStride * 16);
      }
      if constexpr (W::kScaleBytes > 16) {
        arch::cp_async<16>(stage.scales[lane_], scales_);
        arch::cp_async<16>(stage.scales[lane_] + 16, scales_ + 16);
      } else if constexpr (W::kScaleBytes > 0) {
        arch::cp_async<W::kScaleBytes>(stage.scales[lane_], scales_);
      }
      values_ += kNarrowWarps * kUnitBytes;
      scales_ += kNarrowWarps * 8 * W::kScaleBytes;
      left_ -= kNarrowWarps;
    }
    arch::cp_async_commit_group();
  }

  AFNEXT_DEVICE void load_x(int block, int unit) {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      x_[block][n] = *reinterpret_cast<const uint4*>(static_cast<const T*>(p_.x) + x_at_[n] +
                                                     unit * kDepth + block * kBlockDepth);
    }
  }

  // Also replaces x by that of the warp's next unit.
  AFNEXT_DEVICE void multiply(const Stage& stage, int x_unit) {
    Scales scales;
    float part[kColumns][2][4];
#pragma unroll
    for (int b = 0; b < Shared::kBlocks; ++b) {
      constexpr int kGroupBlocks = W::kGroup > 0 ? W::kGroup / kBlockDepth : 1;
      if constexpr (W::kGroup > 0) {
        if (b % kGroupBlocks == 0) {
          scales = group_scales<T, W>(stage.scales[lane_], b / kGroupBlocks);
#pragma unroll
          for (int n = 0; n < kColumns; ++n)
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
              for (int i = 0; i < 4; ++i) part[n][h][i] = 0;
        }
      }
      const Operands a =
          W::Values::template operands<T>(&stage.values[0][lane_], b, scales.offsets);
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const uint32_t x[2][2] = {{x_[b][n].x, x_[b][n].y}, {x_[b][n].z, x_[b][n].w}};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          if constexpr (W::kGroup > 0) {
            arch::mma_sync(part[n][h], a.product[h], x[h], T{});
          } else {
            arch::mma_sync(sums_[n][h], a.product[h], x[h], T{});
          }
        }
      }
      load_x(b, x_unit);
      if constexpr (W::kGroup > 0) {
        if ((b + 1) % kGroupBlocks == 0) {
#pragma unroll
          for (int n = 0; n < kColumns; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              sums_[n][0][i] += scales.row[i / 2] * (part[n][0][i] + part[n][1][i]);
            }
        }
      }
    }
  }

  AFNEXT_DEVICE void store(float* sums) const {
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + 2 * (lane_ % 4) + i % 2;
        const float sum = W::kGroup > 0 ? sums_[n][0][i] : sums_[n][0][i] + sums_[n][1][i];
        if (column < p_.rows) sums[column * kTileRows + lane_ / 4 + 8 * (i / 2)] = sum;
      }
    }
  }

  const LinearParams& p_;
  Stage (&ring_)[Shared::kStages];
  const int lane_, units_;  // of K
  int unit_;                // of the tile, that comes next
  int left_;                // > 0: units of the block's tiles not yet asked for
  int stage_ = 0, free_ = kAhead;
  const unsigned char *values_, *scales_;
  int x_at_[kColumns];  // offsets of rows
  uint4 x_[Shared::kBlocks][kColumns];
  float sums_[kColumns][2][4];
};

template <typename T, typename W, int kColumns>
__global__ void __launch_bounds__(kNarrowThreads, 2)
    packed_linear_narrow_kernel(const LinearParams p) {
  using Shared = NarrowShared<W, kColumns>;
  auto& shared = arch::shared_memory<Shared>();
  const int first = blockIdx.x * p.each;
  const int last = first + p.each < p.tiles ? first + p.each : p.tiles;
  arch::griddepcontrol_launch_dependents();
  NarrowWarp<T, W, kColumns> work(p, shared, first, last);
  work.begin();
  arch::griddepcontrol_wait();
  work.load_x();
  const int sums_of_tile = kNarrowWarps * p.rows * kTileRows, warp = threadIdx.x / arch::kWarp;
  const int batch = Shared::kSums / sums_of_tile;
  const int width = p.end.gate_up ? kTileRows / 2 : kTileRows;
#pragma unroll 1
  for (int tile = first; tile < last; tile += batch) {
    const int count = last - tile < batch ? last - tile : batch;
#pragma unroll 1
    for (int t = 0; t < count; ++t) {
      work.multiply(shared.sums + t * sums_of_tile + warp * p.rows * kTileRows, t == 0);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < p.rows * count * width; i += kNarrowThreads) {
      const int row = i / (count * width), across = i % (count * width);
      const int t = across / width, column = across % width;
      const float* from = shared.sums + t * sums_of_tile + row * kTileRows + column;
      float sum = 0, up = 0;
#pragma unroll
      for (int w = 0; w < kNarrowWarps; ++w, from += p.rows * kTileRows) {
        sum += from[0];
        if (p.end.gate_up) up += from[kTileRows / 2];
      }
      if constexpr (W::kGroup == 0 && W::Values::kScaled) {
        const float* scales = reinterpret_cast<const float*>(p.scales) + (tile + t) * kTileRows;
        sum *= scales[column];
        if (p.end.gate_up) up *= scales[column + kTileRows / 2];
      }
      finish<T>(p.end, row, tile + t, column, sum, up);
    }
    if (tile + batch < last) __syncthreads();
  }
}

}  // namespace afnext::cuda
