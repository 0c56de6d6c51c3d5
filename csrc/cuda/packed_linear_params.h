// What the kernels of packed linear layers have in common: their arguments, and what follows a sum.
#pragma once

#include "cuda/packed_fragments.h"

namespace afnext::cuda {

// What becomes of a sum.
struct LinearEnd {
  const void *bias, *residual;
  void* out;
  int columns;  // of out
  bool gate_up, gelu;
};

struct LinearParams {
  const unsigned char *values, *scales;
  const void* x;  // rows of whole steps of K, aligned to 16 bytes
  int x_stride;   // elements
  int rows;       // of x
  int tiles;      // of W
  int steps;      // of K
  LinearEnd end;
};

// Which result is number `index` of those of `tiles` tiles, of one row of x after another.
struct LinearResult {
  int row, tile, column;

  AFNEXT_DEVICE LinearResult(int index, int tiles, int width)
      : row(index / (tiles * width)),
        tile(index % (tiles * width) / width),
        column(index % (tiles * width) % width) {}
};
// Columns of a tile's results.
AFNEXT_DEVICE int width_of(const LinearEnd& p) { return p.gate_up ? kTileRows / 2 : kTileRows; }

// Finishes the sum of column `column` of the tile (for gate_up also `up`, 8 rows of W on).
template <typename T>
AFNEXT_DEVICE void finish(const LinearEnd& p, int row, int tile, int column, float sum, float up) {
  const int at = tile * width_of(p) + column;
  if (at >= p.columns) return;
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

// Of a row of a tile; weights without such scales have 1.
template <typename W>
AFNEXT_DEVICE float row_scale(const LinearParams& p, int tile, int row) {
  if constexpr (W::kGroup > 0 || !W::Values::kScaled) return 1;
  return reinterpret_cast<const float*>(p.scales)[tile * kTileRows + row];
}

constexpr int kLinearThreads = 256;  // of the small kernels beside the products

// Rows of x on whole steps of K, filled with zeros, where they do not lie so: at most 64 rows are
// read and written once, an element a thread (one with K odd fits no vector). 14 registers, no
// shared memory, 8 blocks a multiprocessor; its time is that of a launch.
template <typename T>
__global__ void __launch_bounds__(kLinearThreads)
    pad_rows_kernel(const T* x, int64_t stride, int k, T* out, int padded) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= padded) return;
  const auto row = static_cast<int64_t>(blockIdx.y);
  out[row * padded + i] = i < k ? x[row * stride + i] : T{};
}

}  // namespace afnext::cuda
