// Products with 9 to 64 rows of x: each weight is converted once and multiplied with all of them.
//
// FLOPs: 2 M N K, at 64 rows 256 a byte of int4, so products and what feeds them count as much as
// bytes. A block of threads makes 128 rows of W (4 warps of two tiles) by all rows of x, half a
// step of K (64) at a time, through a ring of stages in shared memory, 98 KB of it: what sm_120 has
// for a block, and two blocks fit on sm_90. Weights lie in it as in memory, each lane reads back
// its own pieces; x is shared, rows of 128 bytes whose units change places with the row's parity,
// so that eight lanes, of two rows, read different banks. At 64 rows a stage of int4 is 4.6 KB of
// weights and 8 KB of x, which comes out of the L2: 16 rows of W to a row of x would be twice that.
//
// A warp's products with four groups of columns and two tiles follow each other, so that none waits
// for the one before. Products with groups of weights are summed apart, then added with their scale
// in float32: up to 238 registers at 64 rows, so 8 warps a multiprocessor. Without groups 12 would
// have room, with less memory each, and were slower on an H200 (int8, [64, 18944] x [3584, 18944]:
// 49 us, 35 by 8).
//
// Pieces of W that fill the device are multiplied whole. The others would leave it half empty, so
// blocks share the K of each, write float32 sums, and a second kernel adds them in order: the same
// bits at every call.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/griddepcontrol.h"
#include "cuda/arch/matrix.h"
#include "cuda/packed_linear_params.h"

namespace afnext::cuda {

constexpr int kWideWarps = 4;
constexpr int kWideThreads = kWideWarps * arch::kWarp;
constexpr int kWideTiles = 2;  // of a warp
constexpr int kWideTilesOfBlock = kWideWarps * kWideTiles;
constexpr int kWideRows = kWideTilesOfBlock * kTileRows;

constexpr int kWideResident = 2;  // blocks of threads on a multiprocessor, at most

struct WideParams {
  LinearParams linear;
  int whole;        // blocks of threads that do all of K; of the others
  int parts;        // share a piece of W
  int steps_each;   // steps of K for each
  float* sums;      // [parts][rows][rows of W in shared pieces]
  int sums_stride;  // rows of W in shared pieces
};

template <typename W, int kColumns>
struct WideShared {
  static constexpr int kBlocks = 2;  // of K in a stage: half a step
  static constexpr int kPieces = W::Values::kPieces * kBlocks / kStepBlocks;
  static constexpr int kUnits = kBlocks * 4;  // of 16 bytes in a row of x
  static constexpr int kRowsOfX = 8 * kColumns;
  static constexpr int kGroups = W::kGroups > 1 ? W::kGroups / 2 : 1;
  static constexpr int kScaleBytes = W::kGroups > 1 ? W::kScaleBytes / 2 : W::kScaleBytes;
  struct Tile {
    uint4 values[kPieces][arch::kWarp];
    alignas(16) unsigned char scales[arch::kWarp][kScaleBytes > 0 ? kScaleBytes : 1];
  };
  struct Stage {
    Tile tiles[kWideWarps][kWideTiles];
    uint4 x[kRowsOfX][kUnits];
  };
  static constexpr int kRingBytes = 98 << 10;
  static constexpr int kStages = kRingBytes / sizeof(Stage);
  static constexpr int kSumStride = kWideRows + 4;  // lanes of one store in 32 banks
  union {
    Stage ring[kStages];
    float sums[kRowsOfX][kSumStride];
  };

  // Rows of x lie so that eight lanes, of two rows, read different banks.
  static AFNEXT_DEVICE int place(int row, int unit) { return unit ^ (row & 1) << 2; }
};

template <typename T, typename W, int kColumns>
class WideWarp {
 public:
  using Shared = WideShared<W, kColumns>;
  using Stage = typename Shared::Stage;
  static constexpr int kDepth = Shared::kBlocks * kBlockDepth;
  static constexpr int kAhead = Shared::kStages - 1;

  AFNEXT_DEVICE WideWarp(const LinearParams& p, Shared& shared, int piece, int first, int last)
      : p_(p),
        shared_(shared),
        warp_(threadIdx.x / arch::kWarp),
        lane_(threadIdx.x % arch::kWarp),
        weight_unit_(first),
        x_unit_(first),
        last_(last) {
#pragma unroll
    for (int t = 0; t < kWideTiles; ++t) {
      // Tiles beyond the last are the last again: nobody looks at their sums.
      const int index = (piece * kWideWarps + warp_) * kWideTiles + t;
      const auto tile = static_cast<int64_t>(index < p.tiles ? index : p.tiles - 1);
      values_[t] = p.values + (tile * p.steps * 2 + first) * kTileBytes + 16 * lane_;
      scales_[t] = p.scales + (tile * p.steps * 8 + lane_ / 4) * W::kScaleBytes;
    }
    x_ = static_cast<const T*>(p.x) + first * kDepth + threadIdx.x % Shared::kUnits * 8;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      // Rows beyond the last read it again: their products are columns that nobody looks at.
      const int row = threadIdx.x / Shared::kUnits + i * kCopiedRows;
      x_row_[i] = (row < p.rows ? row : p.rows - 1) * p.x_stride;
    }
  }

  AFNEXT_DEVICE void begin_weights() {
#pragma unroll 1
    for (int s = 0; s < kAhead; ++s) {
      fetch_weights(shared_.ring[s]);
      arch::cp_async_commit_group();
    }
  }
  AFNEXT_DEVICE void begin_x() {
#pragma unroll 1
    for (int s = 0; s < kAhead; ++s) {
      fetch_x(shared_.ring[s]);
      arch::cp_async_commit_group();
    }
  }

  AFNEXT_DEVICE void run(int first) {
    int stage = 0, free = kAhead;
#pragma unroll 1
    for (int unit = first; unit < last_; ++unit) {
      arch::cp_async_wait_group<kAhead - 1>();
      __syncthreads();  // all have got the stage, and are done with the one before
      fetch_weights(shared_.ring[free]);
      fetch_x(shared_.ring[free]);
      arch::cp_async_commit_group();
      multiply(shared_.ring[stage]);
      free = stage;
      stage = stage + 1 == Shared::kStages ? 0 : stage + 1;
    }
    arch::cp_async_wait_group<0>();
  }

  // This warp's sums, over the ring, which nobody uses any more.
  AFNEXT_DEVICE void store() const {
#pragma unroll
    for (int t = 0; t < kWideTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = (warp_ * kWideTiles + t) * kTileRows + lane_ / 4 + 8 * (i / 2);
          shared_.sums[8 * n + 2 * (lane_ % 4) + i % 2][row] = sums_[t][n][i];
        }
      }
    }
  }

 private:
  static constexpr int kTileBytes = Shared::kPieces * kPieceStride * 16;  // of a stage
  // A thread's 16 bytes of x in a stage: the same unit of some rows.
  static constexpr int kCopiedRows = kWideThreads / Shared::kUnits;
  static constexpr int kCopies = Shared::kRowsOfX / kCopiedRows;

  AFNEXT_DEVICE void fetch_weights(Stage& stage) {
    if (weight_unit_ >= last_) return;
#pragma unroll
    for (int t = 0; t < kWideTiles; ++t) {
      auto& to = stage.tiles[warp_][t];
#pragma unroll
      for (int i = 0; i < Shared::kPieces; ++i) {
        arch::cp_async<16>(&to.values[i][lane_], values_[t] + i * kPieceStride * 16);
      }
      values_[t] += kTileBytes;
      if constexpr (W::kGroup > 0) {
        const unsigned char* scales = scales_[t] + weight_unit_ / 2 * 8 * W::kScaleBytes;
        if constexpr (W::kGroups > 1) scales += weight_unit_ % 2 * Shared::kScaleBytes;
        arch::cp_async<Shared::kScaleBytes>(to.scales[lane_], scales);
      }
    }
    ++weight_unit_;
  }

  AFNEXT_DEVICE void fetch_x(Stage& stage) {
    if (x_unit_ >= last_) return;
    const int row = threadIdx.x / Shared::kUnits, unit = threadIdx.x % Shared::kUnits;
    uint4* to = &stage.x[row][Shared::place(row, unit)];
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      arch::cp_async<16>(to + i * kCopiedRows * Shared::kUnits, x_ + x_row_[i]);
    }
    x_ += kDepth;
    ++x_unit_;
  }

  // Products of one block of K with four groups of columns come one after the other, so that no
  // product waits for the one before.
  AFNEXT_DEVICE void multiply(const Stage& stage) {
    constexpr int kGroupBlocks = Shared::kBlocks / Shared::kGroups;
    constexpr int kTogether = kColumns < 4 ? kColumns : 4;
    Operands a[kWideTiles][Shared::kBlocks];
    Scales scales[kWideTiles][Shared::kGroups];
#pragma unroll
    for (int t = 0; t < kWideTiles; ++t) {
      const auto& tile = stage.tiles[warp_][t];
#pragma unroll
      for (int b = 0; b < Shared::kBlocks; ++b) {
        if constexpr (W::kGroup > 0) {
          if (b % kGroupBlocks == 0) {
            scales[t][b / kGroupBlocks] = group_scales<T, W>(tile.scales[lane_], b / kGroupBlocks);
          }
        }
        a[t][b] = W::Values::template operands<T>(&tile.values[0][lane_], b,
                                                  scales[t][b / kGroupBlocks].offsets);
      }
    }
#pragma unroll
    for (int first = 0; first < kColumns; first += kTogether) {
      float part[kWideTiles][kTogether][4];
#pragma unroll
      for (int b = 0; b < Shared::kBlocks; ++b) {
        uint32_t x[kTogether][2][2];
#pragma unroll
        for (int n = 0; n < kTogether; ++n) {
          const int row = 8 * (first + n) + lane_ / 4;
          const uint4 v = stage.x[row][Shared::place(row, 4 * b + lane_ % 4)];
          x[n][0][0] = v.x, x[n][0][1] = v.y, x[n][1][0] = v.z, x[n][1][1] = v.w;
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
#pragma unroll
          for (int t = 0; t < kWideTiles; ++t) {
#pragma unroll
            for (int n = 0; n < kTogether; ++n) {
              if constexpr (W::kGroup == 0) {
                arch::mma_sync(sums_[t][first + n], a[t][b].product[h], x[n][h], T{});
              } else {
                if (b % kGroupBlocks == 0 && h == 0) {
                  part[t][n][0] = part[t][n][1] = part[t][n][2] = part[t][n][3] = 0;
                }
                arch::mma_sync(part[t][n], a[t][b].product[h], x[n][h], T{});
                if ((b + 1) % kGroupBlocks == 0 && h == 1) {
#pragma unroll
                  for (int i = 0; i < 4; ++i) {
                    sums_[t][first + n][i] +=
                        scales[t][b / kGroupBlocks].row[i / 2] * part[t][n][i];
                  }
                }
              }
            }
          }
        }
      }
    }
  }

  const LinearParams& p_;
  Shared& shared_;
  const int warp_, lane_;
  int weight_unit_, x_unit_;
  const int last_;
  const unsigned char *values_[kWideTiles], *scales_[kWideTiles];
  const T* x_;
  int x_row_[kCopies];  // offsets of rows
  float sums_[kWideTiles][kColumns][4] = {};
};

// The sums of a block's tiles, from `tile` on.
template <typename T, typename W, int kRowsOfX, int kStride>
AFNEXT_DEVICE void finish_wide(const LinearParams& p, const float (&sums)[kRowsOfX][kStride],
                               int tile) {
  const int width = width_of(p.end);
#pragma unroll 1
  for (int i = threadIdx.x; i < p.rows * kWideTilesOfBlock * width; i += kWideThreads) {
    const LinearResult to(i, kWideTilesOfBlock, width);
    const int at = tile + to.tile;
    if (at >= p.tiles) continue;
    const float* from = &sums[to.row][to.tile * kTileRows + to.column];
    const float sum = from[0] * row_scale<W>(p, at, to.column);
    float up = 0;
    if (p.end.gate_up) {
      up = from[kTileRows / 2] * row_scale<W>(p, at, to.column + kTileRows / 2);
    }
    finish<T>(p.end, to.row, at, to.column, sum, up);
  }
}

template <typename T, typename W, int kColumns>
__global__ void __launch_bounds__(kWideThreads, kWideResident)
    packed_linear_wide_kernel(const WideParams p) {
  using Shared = WideShared<W, kColumns>;
  auto& shared = arch::shared_memory<Shared>();
  constexpr int kStepUnits = kStepBlocks / Shared::kBlocks;
  const auto block = static_cast<int>(blockIdx.x);
  const bool whole = block < p.whole;
  const int piece = whole ? block : p.whole + (block - p.whole) / p.parts;
  const int part = whole ? 0 : (block - p.whole) % p.parts;
  const int first = part * p.steps_each;
  const int end = whole ? p.linear.steps : first + p.steps_each;
  const int last = end < p.linear.steps ? end : p.linear.steps;
  arch::griddepcontrol_launch_dependents();
  WideWarp<T, W, kColumns> work(p.linear, shared, piece, first * kStepUnits, last * kStepUnits);
  work.begin_weights();
  arch::griddepcontrol_wait();
  work.begin_x();
  work.run(first * kStepUnits);
  __syncthreads();  // the ring becomes sums
  work.store();
  __syncthreads();
  if (whole) {
    finish_wide<T, W>(p.linear, shared.sums, piece * kWideTilesOfBlock);
  } else {
    float* sums = p.sums + static_cast<int64_t>(part) * p.linear.rows * p.sums_stride +
                  (piece - p.whole) * kWideRows;
#pragma unroll 1
    for (int i = threadIdx.x; i < p.linear.rows * kWideRows; i += kWideThreads) {
      const int row = i / kWideRows, column = i % kWideRows;
      sums[static_cast<int64_t>(row) * p.sums_stride + column] = shared.sums[row][column];
    }
  }
}

// Adds the parts of K in order: a thread a column of a tile.
template <typename T, typename W>
__global__ void __launch_bounds__(kLinearThreads) add_linear_parts_kernel(const WideParams p) {
  arch::griddepcontrol_wait();
  arch::griddepcontrol_launch_dependents();
  const LinearParams& linear = p.linear;
  const int width = linear.end.gate_up ? kTileRows / 2 : kTileRows;
  const int first = p.whole * kWideTilesOfBlock;
  const auto i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= (linear.tiles - first) * width) return;
  const int tile = i / width, column = i % width, row = static_cast<int>(blockIdx.y);
  const int64_t part = static_cast<int64_t>(linear.rows) * p.sums_stride;
  const float* from =
      p.sums + static_cast<int64_t>(row) * p.sums_stride + tile * kTileRows + column;
  float sum = 0, up = 0;
#pragma unroll 8
  for (int s = 0; s < p.parts; ++s, from += part) {
    sum += from[0];
    if (linear.end.gate_up) up += from[kTileRows / 2];
  }
  sum *= row_scale<W>(linear, first + tile, column);
  if (linear.end.gate_up) up *= row_scale<W>(linear, first + tile, column + kTileRows / 2);
  finish<T>(linear.end, row, first + tile, column, sum, up);
}

}  // namespace afnext::cuda
