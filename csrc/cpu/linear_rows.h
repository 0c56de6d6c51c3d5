// Few rows of x: each weight row is read once, forward, at the pace of memory.
#pragma once

#include "cpu/linear.h"
#include "cpu/parallel.h"
#include "cpu/simd/dot_bf16.h"

namespace afnext::cpu::AFNEXT_ISA {
namespace {

constexpr int kRowTile = 4;                        // rows of x that share a load of the weight
constexpr int kWeightTile = kLanes == 16 ? 4 : 2;  // weight rows that share a load of x
constexpr int64_t kPrefetchBytes = 1536;           // 1 to 2 KB ahead measured best
constexpr int64_t kProductsPerThread = 1 << 18;    // below this, waking a thread costs more

// X rows of x against W rows of the weight, lanes along K. `next` is what is read after this tile.
template <int X, int W, typename T>
AFNEXT_INLINE void dot_tile(const T* x, int64_t x_stride, const T* weight, int64_t weight_stride,
                            const T* next, int64_t k, float (&out)[X][W]) {
  constexpr int step = kPerRegister<T>;
  constexpr int64_t ahead = kPrefetchBytes / static_cast<int64_t>(sizeof(T));
  F32 sums[X][W] = {};
  int64_t i = 0;
  const auto run = [&](int64_t end, const T* coming) __attribute__((always_inline)) {
    for (; i < end; i += step) {
      F32 w[W];
      for (int c = 0; c < W; ++c) {
        __builtin_prefetch(coming + c * weight_stride + i);
        w[c] = load_raw(weight + c * weight_stride + i);
      }
      for (int r = 0; r < X; ++r) {
        const F32 v = load_raw(x + r * x_stride + i);
        for (int c = 0; c < W; ++c) sums[r][c] = dot<T>(v, w[c], sums[r][c]);
      }
    }
  };
  const int64_t whole = k - k % step;
  run(whole - ahead, weight + ahead);
  run(whole, next - (whole > ahead ? whole - ahead : 0));
  if (const int n = static_cast<int>(k - whole); n > 0) {
    F32 w[W];
    for (int c = 0; c < W; ++c) w[c] = load_raw_n(weight + c * weight_stride + i, n);
    for (int r = 0; r < X; ++r) {
      const F32 v = load_raw_n(x + r * x_stride + i, n);
      for (int c = 0; c < W; ++c) sums[r][c] = dot<T>(v, w[c], sums[r][c]);
    }
  }
  sum_all<X * W>(&sums[0][0], &out[0][0]);
}

// Rows [row, row + X) against weight rows [column, column + W).
template <int X, int W, typename T>
void rows_by_columns(const LinearArgs& a, int64_t row, int64_t column) {
  const T* weight = static_cast<const T*>(a.weight) + column * a.weight_stride;
  const T* bias = static_cast<const T*>(a.bias);
  float tile[X][W];
  dot_tile<X, W>(static_cast<const T*>(a.x) + row * a.x_stride, a.x_stride, weight, a.weight_stride,
                 weight + W * a.weight_stride, a.k, tile);
  for (int r = 0; r < X; ++r) {
    T* out = static_cast<T*>(a.out) + (row + r) * a.n + column;
    for (int c = 0; c < W; ++c)
      from_float(out + c, bias != nullptr ? tile[r][c] + to_float(bias[column + c]) : tile[r][c]);
  }
}

template <int W, typename T>
void all_rows(const LinearArgs& a, int64_t column) {
  int64_t row = 0;
  for (; row + kRowTile <= a.m; row += kRowTile) rows_by_columns<kRowTile, W, T>(a, row, column);
  switch (a.m - row) {
    case 3:
      return rows_by_columns<3, W, T>(a, row, column);
    case 2:
      return rows_by_columns<2, W, T>(a, row, column);
    case 1:
      return rows_by_columns<1, W, T>(a, row, column);
  }
}

template <typename T>
void linear_rows(const LinearArgs& a) {
  const int64_t products = a.m * a.k * kWeightTile;
  const int64_t tiles = (a.n + kWeightTile - 1) / kWeightTile;
  parallel_for(tiles, kProductsPerThread / (products + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      int64_t column = tile * kWeightTile;
      if (column + kWeightTile <= a.n) {
        all_rows<kWeightTile, T>(a, column);
      } else {
        for (; column < a.n; ++column) all_rows<1, T>(a, column);
      }
    }
  });
}

}  // namespace
}  // namespace afnext::cpu::AFNEXT_ISA
