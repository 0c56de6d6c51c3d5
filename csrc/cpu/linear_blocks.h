// Many rows of x: the weight is packed, a block at a time, into panels whose columns are lanes, and
// a tile of the output stays in registers while a chunk of K goes by (Goto and van de Geijn, 2008).
//
// A job owns a block of the output and packs for itself: no thread waits for another, and an output
// is summed in the same order whatever the blocks and the threads are.
#pragma once

#include "cpu/linear.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"
#include "cpu/simd/rows.h"
#include "cpu/simd/shuffle.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int kTileRows = kLanes == 16 ? 14 : 6;  // with 2 vectors a row this fills the registers
constexpr int kPanel = 2 * kLanes;                // columns of a panel
constexpr int64_t kChunk = 512;                   // of K: a tile's rows stay in L1
constexpr int64_t kBlockRows = 36 * kTileRows;    // with kBlockColumns: the block stays in L2
constexpr int64_t kBlockColumns = 256;
constexpr int64_t kProductsPerJob = 1 << 20;

// `columns` weight rows as float32 panels [count, kPanel]; columns that are missing are zero.
template <typename T>
void pack_panels(const T* weight, int64_t stride, int64_t columns, int64_t count, float* panels) {
  const int64_t padded = (columns + kPanel - 1) / kPanel * kPanel;
  for (int64_t first = 0; first < padded; first += kLanes) {
    float* panel = panels + first / kPanel * kPanel * count + first % kPanel;
    const T* rows = weight + first * stride;
    const int64_t present = columns - first;
    for (int64_t i = 0; i < count; i += kLanes) {
      const int n = static_cast<int>(count - i < kLanes ? count - i : kLanes);
      F32 square[kLanes];
      if (present >= kLanes && n == kLanes) {
        for (int c = 0; c < kLanes; ++c) square[c] = load(rows + c * stride + i);
      } else {
        for (int c = 0; c < kLanes; ++c)
          square[c] = c < present ? load_n(rows + c * stride + i, n) : F32{};
      }
      transpose(square);
      for (int k = 0; k < n; ++k) store(panel + (i + k) * kPanel, square[k]);
    }
  }
}

struct Tile {
  const float* rows;   // [R, kChunk]
  const float* panel;  // [depth, kPanel]
  int64_t depth;
  float* sums;  // where the block keeps float32 between chunks, rows at kBlockColumns
  bool first, last;
  const void* bias;  // of the panel's columns, or null
  void* out;         // the output's tile
  int64_t out_stride;
  int columns;  // 1 to kPanel
};

template <typename T>
AFNEXT_INLINE void finish(const Tile& t, int row, int vector, F32 v) {
  const int column = vector * kLanes, n = t.columns - column;
  if (n <= 0) return;
  T* out = static_cast<T*>(t.out) + row * t.out_stride + column;
  const T* bias = static_cast<const T*>(t.bias);
  if (n >= kLanes) {
    store(out, bias != nullptr ? v + load(bias + column) : v);
  } else {
    store_n(out, bias != nullptr ? v + load_n(bias + column, n) : v, n);
  }
}

template <int R, typename T>
void tile(const Tile& t) {
  F32 sums[R][2] = {};
  const float* panel = t.panel;
  for (int64_t k = 0; k < t.depth; ++k, panel += kPanel) {
    const F32 left = load(panel), right = load(panel + kLanes);
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const F32 v = in_register(broadcast(t.rows[r * kChunk + k]));
      sums[r][0] = fma(v, left, sums[r][0]);
      sums[r][1] = fma(v, right, sums[r][1]);
    }
  }
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      float* kept = t.sums + r * kBlockColumns + v * kLanes;
      const F32 total = t.first ? sums[r][v] : sums[r][v] + load(kept);
      if (t.last) {
        finish<T>(t, r, v, total);
      } else {
        store(kept, total);
      }
    }
  }
}

// tile<rows>, for rows known at run time.
template <int R, typename T>
AFNEXT_INLINE void tile_of(int rows, const Tile& t) {
  if constexpr (R > 1) {
    if (rows != R) return tile_of<R - 1, T>(rows, t);
  }
  tile<R, T>(t);
}

template <typename T>
void block(const LinearArgs& a, int64_t row0, int64_t rows, int64_t column0, int64_t columns) {
  float* packed_rows = scratch<float>(0, kTileRows * kChunk);
  float* panels = scratch<float>(1, kBlockColumns * kChunk);
  float* sums = scratch<float>(2, kBlockRows * kBlockColumns);
  // Tiles of even height: 15 rows are 8 + 7, not 14 + 1.
  const int64_t n_tiles = (rows + kTileRows - 1) / kTileRows;
  for (int64_t k = 0; k == 0 || k < a.k; k += kChunk) {
    const int64_t count = a.k - k < kChunk ? a.k - k : kChunk;
    pack_panels(static_cast<const T*>(a.weight) + column0 * a.weight_stride + k, a.weight_stride,
                columns, count, panels);
    for (int64_t i = 0; i < n_tiles; ++i) {
      const int64_t top = rows * i / n_tiles, height = rows * (i + 1) / n_tiles - top;
      for (int64_t r = 0; r < height; ++r) {
        load_row(static_cast<const T*>(a.x) + (row0 + top + r) * a.x_stride + k, count,
                 packed_rows + r * kChunk);
      }
      for (int64_t c = 0; c < columns; c += kPanel) {
        const int width = static_cast<int>(columns - c < kPanel ? columns - c : kPanel);
        tile_of<kTileRows, T>(
            static_cast<int>(height),
            {packed_rows, panels + c * count, count, sums + top * kBlockColumns + c, k == 0,
             k + kChunk >= a.k,
             a.bias != nullptr ? static_cast<const T*>(a.bias) + column0 + c : nullptr,
             static_cast<T*>(a.out) + (row0 + top) * a.n + column0 + c, a.n, width});
      }
    }
  }
}

AFNEXT_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
void linear_blocks(const LinearArgs& a) {
  const int64_t row_blocks = divide_up(a.m, kBlockRows);
  // Narrower blocks where there would be too few for the threads to share evenly.
  const int64_t wanted = divide_up(4 * num_threads(), row_blocks);
  int64_t width = divide_up(divide_up(a.n, wanted), kPanel) * kPanel;
  width = width < kBlockColumns ? width : kBlockColumns;
  const int64_t column_blocks = divide_up(a.n, width);
  const int64_t products = divide_up(a.m, row_blocks) * width * a.k;
  parallel_for(row_blocks * column_blocks, kProductsPerJob / (products + 1) + 1,
               [&](int64_t begin, int64_t end) {
                 for (int64_t job = begin; job < end; ++job) {
                   const int64_t i = job % row_blocks, column = job / row_blocks * width;
                   const int64_t row = a.m * i / row_blocks;
                   block<T>(a, row, a.m * (i + 1) / row_blocks - row, column,
                            a.n - column < width ? a.n - column : width);
                 }
               });
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
