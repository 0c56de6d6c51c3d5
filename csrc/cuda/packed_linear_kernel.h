// out = activation(x @ W^T + bias) + residual for M = 1 to 64 rows of x: each weight is read once,
// and that is what it costs.
//
// Bytes: N K b with b = 2, 1 or 1/2 and scales (4096 x 4096 in int4: 8.4 MB, 1.8 us at 4.8 TB/s);
// FLOPs: 2 M N K. By Little's law 4.8 TB/s x 700 ns = 3.4 MB are to be on their way, 25 KB to each
// of 132 multiprocessors. A warp's ring holds 3 blocks of 4 KB, 5 or 6 of 2 KB or 8 of 1 KB and
// works on one of them: 56 to 80 KB on their way to 8 warps. The ring is what sm_120 has for a
// block of threads, 99 KB; sm_90 holds two.
//
// W is the A operand (16 rows a product) and x the B operand (8 rows), so that M <= 8 wastes least;
// kColumns groups of 8 make M <= 16, 32, 64. A block of threads owns a panel of 64 rows of W, its
// warps take the blocks of K in turn, and their sums meet in shared memory. A lane copies and reads
// back its own 16-byte pieces, which needs no barrier; scales of groups cross lanes, and a
// __syncwarp orders them. x comes through the L1, 64 bytes a row for each block of K: it is M / 64
// of what bf16 weights are, the larger stream for int4 beyond M = 16, but out of the L2.
//
// Issue slots of a warp for a block at M <= 8 in int4: 88 to dequantise, 8 products, 32 for scales,
// some 20 for copies and x; its 1 KB arrives every 51 clocks (20 bytes a clock and multiprocessor),
// which are 204 slots of 4 schedulers. At M = 64 int4 is 256 FLOP a byte: there the products rule.
//
// Where groups of K share scales, integers are multiplied exactly and summed apart, 32 of K at a
// time, then added with their scale in float32: nothing is rounded but sums. Registers on sm_90a:
// 56 to 76 at M <= 8, up to 109 at M <= 16 (two blocks of threads fit), up to 197 at M <= 64, where
// warps share a panel in halves to hold 64 sums a lane instead of 128.
//
// Few panels do not fill a device: gridDim.y parts of K then write float32 sums, and a second
// kernel adds them in order. No atomics: the same bits at every call.
#pragma once

#include "cuda/arch/copy.h"
#include "cuda/arch/matrix.h"
#include "cuda/packed_fragments.h"

namespace afnext::cuda {

// What becomes of a sum.
struct LinearEnd {
  const float* row_scales;  // [panel][64], or null
  const void *bias, *residual;
  void* out;
  int columns;  // of out
  bool gate_up, gelu;
};

struct LinearParams {
  const unsigned char *values, *scales;
  const void* x;                  // rows of whole blocks of K, aligned to 16 bytes
  int64_t group_bytes;            // of a panel's groups
  int x_stride;                   // elements
  int rows, blocks, blocks_each;  // of x; of K; of K for each part
  float* parts;  // [gridDim.y][rows][gridDim.x * 64], or null: `end` follows at once
  LinearEnd end;
};

// Finishes the sum of column `column` of the panel (for gate_up also `up`, 32 columns on).
template <typename T>
AFNEXT_DEVICE void finish(const LinearEnd& p, int row, int panel, int column, float sum, float up) {
  const int width = p.gate_up ? kPanelRows / 2 : kPanelRows;
  const int at = panel * width + column;
  if (at >= p.columns) return;
  if (p.row_scales != nullptr) {
    sum *= p.row_scales[panel * kPanelRows + column];
    if (p.gate_up) up *= p.row_scales[panel * kPanelRows + column + kPanelRows / 2];
  }
  if (p.bias != nullptr) {
    sum += arch::to_float(static_cast<const T*>(p.bias)[at]);
    if (p.gate_up) up += arch::to_float(static_cast<const T*>(p.bias)[p.columns + at]);
  }
  if (p.gelu) sum = 0.5f * sum * erfcf(-0.70710678f * sum);  // 1 + erf would cancel
  if (p.gate_up) sum = sum / (1.0f + expf(-sum)) * up;
  const int64_t to = static_cast<int64_t>(row) * p.columns + at;
  if (p.residual != nullptr) sum += arch::to_float(static_cast<const T*>(p.residual)[to]);
  static_cast<T*>(p.out)[to] = arch::rounded<T>(sum);
}

constexpr int kLinearWarps = 8;
constexpr int kLinearThreads = kLinearWarps * arch::kWarp;

// Who does what: all warps share K, or with many rows of x, halves of them share K for half of the
// panel's tiles each, so that sums fit in registers.
template <int kColumns>
struct LinearShape {
  static constexpr int kHalves = kColumns == 8 ? 2 : 1;
  static constexpr int kWarpTiles = kTiles / kHalves;
  static constexpr int kDeepWarps = kLinearWarps / kHalves;  // along K
};

// A warp's ring of blocks on their way; afterwards sums, of warps w and w + 4 along K together.
template <typename W, int kColumns>
struct LinearShared {
  static constexpr int kPieces = W::Values::kPieces / LinearShape<kColumns>::kHalves;
  struct Stage {
    uint4 values[kPieces][arch::kWarp];
    alignas(16) unsigned char scales[W::kGroupBytes > 0 ? W::kGroupBytes : 16];
  };
  static constexpr int kRingBytes = (99 << 10) / kLinearWarps;
  static constexpr int kMostStages = 8;
  static constexpr int kStages =
      kRingBytes / sizeof(Stage) < kMostStages ? kRingBytes / sizeof(Stage) : kMostStages;
  static constexpr int kSumStride = kPanelRows + 4;  // lanes of one store in 32 banks
  static constexpr int kSlots = 4;
  union {
    Stage ring[kLinearWarps][kStages];
    float sums[kSlots][8 * kColumns][kSumStride];
  };
};

template <typename T, typename W, int kColumns>
class LinearWarp {
 public:
  using Shape = LinearShape<kColumns>;
  using Shared = LinearShared<W, kColumns>;
  using Stage = typename Shared::Stage;

  AFNEXT_DEVICE LinearWarp(const LinearParams& p, Shared& shared)
      : p_(p),
        ring_(shared.ring[threadIdx.x / arch::kWarp]),
        lane_(threadIdx.x % arch::kWarp),
        deep_(threadIdx.x / arch::kWarp % Shape::kDeepWarps),
        half_(threadIdx.x / arch::kWarp / Shape::kDeepWarps) {
    const auto panel = static_cast<int64_t>(blockIdx.x);
    values_ = p.values + panel * p.blocks * W::kBlockBytes +
              16 * (half_ * Shared::kPieces * kPieceStride + lane_);
    groups_ = p.scales + panel * p.group_bytes + 16 * lane_;
#pragma unroll
    for (int n = 0; n < kColumns; ++n) {
      // Rows beyond the last read it again: their products are columns that nobody looks at.
      const int row = 8 * n + lane_ / 4;
      x_[n] = (row < p.rows ? row : p.rows - 1) * p.x_stride + lane_ % 4 * 8;
    }
  }

  // This warp's place among those that share K.
  AFNEXT_DEVICE int deep() const { return deep_; }

  // Adds the products of this warp's blocks from `first` to `last`.
  AFNEXT_DEVICE void accumulate(int first, int last) {
    constexpr int kAhead = Shared::kStages - 1;
    int next = first + deep_;
#pragma unroll
    for (int s = 0; s < kAhead; ++s, next += Shape::kDeepWarps) fetch(ring_[s], next, last);
    int stage = 0, free = kAhead;
#pragma unroll 1
    for (int block = first + deep_; block < last; block += Shape::kDeepWarps) {
      uint4 x[kColumns];
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        x[n] = *reinterpret_cast<const uint4*>(static_cast<const T*>(p_.x) + x_[n] +
                                               block * kBlockDepth);
      }
      arch::cp_async_wait_group<kAhead - 1>();
      __syncwarp();  // scales came by other lanes' copies, and all are done with stage `free`
      fetch(ring_[free], next, last);
      multiply(ring_[stage], x);
      next += Shape::kDeepWarps;
      free = stage;
      stage = stage + 1 == Shared::kStages ? 0 : stage + 1;
    }
    arch::cp_async_wait_group<0>();
  }

  // Stores (or, with `add`, adds to what is there and stores) this warp's sums.
  AFNEXT_DEVICE void store(float (&sums)[8 * kColumns][Shared::kSumStride], bool add) const {
#pragma unroll
    for (int t = 0; t < Shape::kWarpTiles; ++t) {
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = kTileRows * (half_ * Shape::kWarpTiles + t) + lane_ / 4 + 8 * (i / 2);
          float& to = sums[8 * n + 2 * (lane_ % 4) + i % 2][row];
          to = add ? to + sums_[t][n][i] : sums_[t][n][i];
        }
      }
    }
  }

 private:
  // Always one group of copies, so that waits count alike.
  AFNEXT_DEVICE void fetch(Stage& stage, int block, int last) const {
    if (block < last) {
      const unsigned char* from = values_ + static_cast<int64_t>(block) * W::kBlockBytes;
#pragma unroll
      for (int i = 0; i < Shared::kPieces; ++i) {
        arch::cp_async<16>(&stage.values[i][lane_], from + i * kPieceStride * 16);
      }
      if constexpr (W::kGroup > 0) {
        if (lane_ < W::kGroupBytes / 16) {
          arch::cp_async<16>(stage.scales + 16 * lane_,
                             groups_ + block / W::kGroupBlocks * W::kGroupBytes);
        }
      }
    }
    arch::cp_async_commit_group();
  }

  AFNEXT_DEVICE void multiply(const Stage& stage, const uint4 (&x)[kColumns]) {
#pragma unroll
    for (int t = 0; t < Shape::kWarpTiles; ++t) {
      TileScales scales;
      if constexpr (W::kGroup > 0) {
        scales = tile_scales<T, W>(stage.scales, half_ * Shape::kWarpTiles + t, lane_);
      }
      const Operands a =
          W::Values::template operands<T>(&stage.values[0][lane_], t, scales.offsets);
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const uint32_t b[2][2] = {{x[n].x, x[n].y}, {x[n].z, x[n].w}};
        if constexpr (W::kGroup == 0) {
          arch::mma_sync(sums_[t][n], a.product[0], b[0], T{});
          arch::mma_sync(sums_[t][n], a.product[1], b[1], T{});
        } else {
          float part[4] = {};
          arch::mma_sync(part, a.product[0], b[0], T{});
          arch::mma_sync(part, a.product[1], b[1], T{});
#pragma unroll
          for (int i = 0; i < 4; ++i) sums_[t][n][i] += scales.scale[i / 2] * part[i];
        }
      }
    }
  }

  const LinearParams& p_;
  Stage (&ring_)[Shared::kStages];
  const int lane_, deep_, half_;
  const unsigned char *values_, *groups_;
  int x_[kColumns];  // offsets of rows
  float sums_[Shape::kWarpTiles][kColumns][4] = {};
};

// gridDim.x panels, gridDim.y parts of K.
template <typename T, typename W, int kColumns>
__global__ void __launch_bounds__(kLinearThreads, kColumns <= 2 ? 2 : 1)
    packed_linear_kernel(const LinearParams p) {
  using Shared = LinearShared<W, kColumns>;
  auto& shared = arch::shared_memory<Shared>();
  const int first = blockIdx.y * p.blocks_each;
  const int last = first + p.blocks_each < p.blocks ? first + p.blocks_each : p.blocks;
  LinearWarp<T, W, kColumns> work(p, shared);
  work.accumulate(first, last);
  constexpr bool kTwice = LinearShape<kColumns>::kDeepWarps > Shared::kSlots;
  __syncthreads();  // the rings become sums
  if (kTwice && work.deep() >= Shared::kSlots) {
    work.store(shared.sums[work.deep() - Shared::kSlots], false);
  }
  if constexpr (kTwice) __syncthreads();
  if (work.deep() < Shared::kSlots) work.store(shared.sums[work.deep()], kTwice);
  __syncthreads();

  const bool pairs = p.parts == nullptr && p.end.gate_up;
  const int width = pairs ? kPanelRows / 2 : kPanelRows;
#pragma unroll 1
  for (int i = threadIdx.x; i < p.rows * width; i += kLinearThreads) {
    const int row = i / width, column = i % width;
    float sum = 0, up = 0;
#pragma unroll
    for (int s = 0; s < Shared::kSlots; ++s) {
      sum += shared.sums[s][row][column];
      if (pairs) up += shared.sums[s][row][column + kPanelRows / 2];
    }
    if (p.parts != nullptr) {
      const int64_t part = static_cast<int64_t>(blockIdx.y) * p.rows + row;
      p.parts[(part * gridDim.x + blockIdx.x) * kPanelRows + column] = sum;
    } else {
      finish<T>(p.end, row, static_cast<int>(blockIdx.x), column, sum, up);
    }
  }
}

// Adds the parts of a row in order: a thread a column of a panel.
template <typename T>
__global__ void __launch_bounds__(kLinearThreads)
    add_linear_parts_kernel(const float* parts, int count, int panels, LinearEnd end) {
  const int width = end.gate_up ? kPanelRows / 2 : kPanelRows;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= panels * width) return;
  const int panel = i / width, column = i % width, row = static_cast<int>(blockIdx.y);
  const int64_t part = static_cast<int64_t>(gridDim.y) * panels * kPanelRows;
  const float* from = parts + (static_cast<int64_t>(row) * panels + panel) * kPanelRows + column;
  float sum = 0, up = 0;
  for (int s = 0; s < count; ++s, from += part) {
    sum += from[0];
    if (end.gate_up) up += from[kPanelRows / 2];
  }
  finish<T>(end, row, panel, column, sum, up);
}

// Rows of x on whole blocks of K, filled with zeros, where they do not lie so.
template <typename T>
__global__ void __launch_bounds__(kLinearThreads)
    pad_rows_kernel(const T* x, int64_t stride, int k, T* out, int padded) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= padded) return;
  const auto row = static_cast<int64_t>(blockIdx.y);
  out[row * padded + i] = i < k ? x[row * stride + i] : T{};
}

}  // namespace afnext::cuda
