// Products with 17 to 64 rows of x: ...
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
constexpr int kWideResident = 2;  // blocks of threads of a multiprocessor

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
  static constexpr int kStages = (98 << 10) / sizeof(Stage);
  Stage ring[kStages];

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
    const int units = p.steps * (kStepDepth / kDepth);
#pragma unroll
    for (int t = 0; t < kWideTiles; ++t) {
      tile_[t] = (piece * kWideWarps + warp_) * kWideTiles + t;
      // Tiles beyond the last are the last again: nobody looks at their sums.
      const auto tile = static_cast<int64_t>(tile_[t] < p.tiles ? tile_[t] : p.tiles - 1);
      values_[t] = p.values + tile * units * kTileBytes + 16 * lane_;
      scales_[t] = p.scales + (tile * p.steps * 8 + lane_ / 4) * W::kScaleBytes;
    }
  }

  AFNEXT_DEVICE void begin_weights() {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      fetch_weights(shared_.ring[s]);
      arch::cp_async_commit_group();
    }
  }
  AFNEXT_DEVICE void begin_x() {
#pragma unroll
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

  // use(tile, row of x, row of the tile, its sum, that of the row 8 below)
  template <typename Use>
  AFNEXT_DEVICE void each(const Use& use) const {
#pragma unroll
    for (int t = 0; t < kWideTiles; ++t) {
      if (tile_[t] >= p_.tiles) continue;
      float scale[2] = {1, 1};
      if constexpr (W::kGroup == 0 && W::Values::kScaled) {
        const float* scales = reinterpret_cast<const float*>(p_.scales) + tile_[t] * kTileRows;
        scale[0] = scales[lane_ / 4], scale[1] = scales[lane_ / 4 + 8];
      }
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = 8 * n + 2 * (lane_ % 4) + i;
          if (row < p_.rows) {
            use(tile_[t], row, lane_ / 4, scale[0] * sums_[t][n][i], scale[1] * sums_[t][n][i + 2]);
          }
        }
      }
    }
  }

 private:
  static constexpr int kTileBytes = Shared::kPieces * kPieceStride * 16;  // of a stage

  AFNEXT_DEVICE void fetch_weights(Stage& stage) {
    if (weight_unit_ < last_) {
#pragma unroll
      for (int t = 0; t < kWideTiles; ++t) {
        auto& to = stage.tiles[warp_][t];
        const unsigned char* from = values_[t] + static_cast<int64_t>(weight_unit_) * kTileBytes;
#pragma unroll
        for (int i = 0; i < Shared::kPieces; ++i) {
          arch::cp_async<16>(&to.values[i][lane_], from + i * kPieceStride * 16);
        }
        if constexpr (W::kGroup > 0) {
          const unsigned char* scales =
              scales_[t] + static_cast<int64_t>(weight_unit_ / 2) * 8 * W::kScaleBytes;
          if constexpr (W::kGroups > 1) scales += weight_unit_ % 2 * Shared::kScaleBytes;
          arch::cp_async<Shared::kScaleBytes>(to.scales[lane_], scales);
        }
      }
      ++weight_unit_;
    }
  }

  AFNEXT_DEVICE void fetch_x(Stage& stage) {
    if (x_unit_ < last_) {
#pragma unroll
      for (int i = threadIdx.x; i < Shared::kRowsOfX * Shared::kUnits; i += kWideThreads) {
        const int row = i / Shared::kUnits, unit = i % Shared::kUnits;
        // Rows beyond the last read it again: their products are columns that nobody looks at.
        const T* from = static_cast<const T*>(p_.x) +
                        (row < p_.rows ? row : p_.rows - 1) * p_.x_stride + x_unit_ * kDepth +
                        unit * 8;
        arch::cp_async<16>(&stage.x[row][Shared::place(row, unit)], from);
      }
      ++x_unit_;
    }
  }

  AFNEXT_DEVICE void multiply(const Stage& stage) {
    constexpr int kGroupBlocks = Shared::kBlocks / Shared::kGroups;
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
    for (int n = 0; n < kColumns; ++n) {
      const int row = 8 * n + lane_ / 4;
      uint4 x[Shared::kBlocks];
#pragma unroll
      for (int b = 0; b < Shared::kBlocks; ++b) {
        x[b] = stage.x[row][Shared::place(row, 4 * b + lane_ % 4)];
      }
#pragma unroll
      for (int t = 0; t < kWideTiles; ++t) {
        float part[4];
#pragma unroll
        for (int b = 0; b < Shared::kBlocks; ++b) {
          const uint32_t halves[2][2] = {{x[b].x, x[b].y}, {x[b].z, x[b].w}};
          if constexpr (W::kGroup == 0) {
            arch::mma_sync(sums_[t][n], a[t][b].product[0], halves[0], T{});
            arch::mma_sync(sums_[t][n], a[t][b].product[1], halves[1], T{});
          } else {
            if (b % kGroupBlocks == 0) part[0] = part[1] = part[2] = part[3] = 0;
            arch::mma_sync(part, a[t][b].product[0], halves[0], T{});
            arch::mma_sync(part, a[t][b].product[1], halves[1], T{});
            if ((b + 1) % kGroupBlocks == 0) {
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                sums_[t][n][i] += scales[t][b / kGroupBlocks].row[i / 2] * part[i];
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
  int tile_[kWideTiles];
  const unsigned char *values_[kWideTiles], *scales_[kWideTiles];
  float sums_[kWideTiles][kColumns][4] = {};
};

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
  if (whole) {
    const bool pairs = p.linear.end.gate_up;
    work.each([&](int tile, int row, int column, float sum, float below) {
      finish<T>(p.linear.end, row, tile, column, sum, below);
      if (!pairs) finish<T>(p.linear.end, row, tile, column + 8, below, 0);
    });
  } else {
    const int skipped = p.whole * kWideRows;
    float* sums = p.sums + static_cast<int64_t>(part) * p.linear.rows * p.sums_stride - skipped;
    work.each([&](int tile, int row, int column, float sum, float below) {
      float* to = sums + static_cast<int64_t>(row) * p.sums_stride + tile * kTileRows + column;
      to[0] = sum, to[8] = below;
    });
  }
}

// Adds the parts of K in order: a thread a column of a tile.
template <typename T>
__global__ void __launch_bounds__(kLinearThreads) add_linear_parts_kernel(const WideParams p) {
  arch::griddepcontrol_launch_dependents();
  arch::griddepcontrol_wait();
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
  for (int s = 0; s < p.parts; ++s, from += part) {
    sum += from[0];
    if (linear.end.gate_up) up += from[kTileRows / 2];
  }
  finish<T>(linear.end, row, first + tile, column, sum, up);
}

}  // namespace afnext::cuda
